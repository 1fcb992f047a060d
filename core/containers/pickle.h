/* pickle.h: Python's pickles, read as inert data.
 *
 * A pickle is a program for a stack machine, and loading one in Python may run anything.  Here nothing is
 * ever called: a call is a node that names the callable and holds its arguments, the caller lists the names
 * it knows, and any other name, any other opcode and any object's state is refused.
 *
 * The result is a graph of nodes.  It may share nodes and even contain itself, so whoever walks it bounds
 * the depth and the steps.  Source: Python's pickletools.py, protocol 2; opcodes as torch's weights-only
 * reader takes them.
 */
#ifndef QM_PICKLE_H
#define QM_PICKLE_H

#include "../cursor.h"

#define QM_PICKLE_NODES (8u << 20) /* the largest state dicts have a few hundred thousand */

typedef enum {
    QM_PICKLE_NONE,
    QM_PICKLE_BOOL,
    QM_PICKLE_INT,
    QM_PICKLE_FLOAT,
    QM_PICKLE_TEXT,
    QM_PICKLE_GLOBAL,
    QM_PICKLE_TUPLE,
    QM_PICKLE_LIST,
    QM_PICKLE_DICT,       /* children: key, value, key, value … */
    QM_PICKLE_CALL,       /* children: the global, a tuple of arguments */
    QM_PICKLE_PERSISTENT, /* child: its tuple; where a file keeps bulk data apart */
} qm_pickle_kind;

typedef struct qm_pickle_node {
    qm_pickle_kind kind;
    uint32_t first, last; /* cells of the children; count says whether there are any */
    uint32_t count;
    int64_t integer;  /* INT, BOOL; GLOBAL: index in the caller's list */
    const char *text; /* TEXT: in the input, not NUL-terminated */
    uint64_t length;
} qm_pickle_node;

typedef struct qm_pickle_cell {
    uint32_t node, next;
} qm_pickle_cell;

typedef struct qm_pickle {
    qm_pickle_node *node;
    size_t count;
    qm_pickle_cell *cell;
    size_t ncell;
    uint32_t root;
} qm_pickle;

/* Reads one pickle at the cursor and stops behind it.  `known` is a NULL-terminated list of "module name";
 * collections.OrderedDict is always known and becomes a DICT.  Texts point into the cursor's bytes. */
bool qm_pickle_read(qm_pickle *p, qm_cursor *c, const char *const *known, qm_err *e);
void qm_pickle_free(qm_pickle *p);

/* Child i of a node that has more than i. */
const qm_pickle_node *qm_pickle_child(const qm_pickle *p, const qm_pickle_node *n, uint32_t i);

#endif
