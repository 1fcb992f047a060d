/* pickle.c: see pickle.h.  Every opcode takes at least one byte and makes at most a node and a few cells, so
 * memory is bounded by the input; QM_PICKLE_NODES bounds it further.
 */
#include "pickle.h"

#include <stdlib.h>

#define NO_NODE UINT32_MAX
#define MARK    (UINT32_MAX - 1)

typedef struct machine {
    qm_cursor *c;
    qm_err *e;
    const char *const *known;
    qm_pickle p;
    uint32_t *stack, *memo;
    size_t node_room, cell_room, stack_room, memo_room;
    size_t depth;
} machine;

/* ---- memory --------------------------------------------------------------------------------- */

/* Makes room for item `need` - 1 of *list. */
static bool reserve(machine *m, void **list, size_t *room, size_t need, size_t item)
{
    if (need <= *room)
        return true;
    if (need > 4 * (size_t)QM_PICKLE_NODES)
        return qm_fail(m->e, QM_ECORRUPT, "%s: its pickle holds more than %u objects", m->c->what,
                       QM_PICKLE_NODES);
    size_t more = need < 1024 ? 1024 : need + need / 2;
    void *grown = realloc(*list, more * item);
    if (!grown)
        return qm_fail(m->e, QM_ENOFIT, "%s: out of memory for its pickle", m->c->what);
    *list = grown;
    *room = more;
    return true;
}

static qm_pickle_node *new_node(machine *m, qm_pickle_kind kind)
{
    if (m->p.count == QM_PICKLE_NODES) {
        qm_fail(m->e, QM_ECORRUPT, "%s: its pickle holds more than %u objects", m->c->what, QM_PICKLE_NODES);
        return NULL;
    }
    if (!reserve(m, (void **)&m->p.node, &m->node_room, m->p.count + 1, sizeof *m->p.node))
        return NULL;
    qm_pickle_node *n = &m->p.node[m->p.count++];
    *n = (qm_pickle_node){.kind = kind};
    return n;
}

static bool add_child(machine *m, uint32_t parent, uint32_t child)
{
    if (!reserve(m, (void **)&m->p.cell, &m->cell_room, m->p.ncell + 1, sizeof *m->p.cell))
        return false;
    uint32_t at = (uint32_t)m->p.ncell++;
    qm_pickle_node *n = &m->p.node[parent];
    m->p.cell[at] = (qm_pickle_cell){child, at};
    if (n->count++ == 0)
        n->first = at;
    else
        m->p.cell[n->last].next = at;
    n->last = at;
    return true;
}

static bool push(machine *m, uint32_t node)
{
    if (!reserve(m, (void **)&m->stack, &m->stack_room, m->depth + 1, sizeof *m->stack))
        return false;
    m->stack[m->depth++] = node;
    return true;
}

static bool push_node(machine *m, qm_pickle_kind kind)
{
    return new_node(m, kind) && push(m, (uint32_t)m->p.count - 1);
}

static bool push_integer(machine *m, qm_pickle_kind kind, int64_t value)
{
    qm_pickle_node *n = new_node(m, kind);
    if (!n)
        return false;
    n->integer = value;
    return push(m, (uint32_t)m->p.count - 1);
}

/* ---- failing -------------------------------------------------------------------------------- */

static bool broken(machine *m, const char *why)
{
    return qm_fail(m->e, QM_ECORRUPT, "%s: its pickle is damaged near byte %" PRIu64 ": %s", m->c->what,
                   m->c->pos, why);
}

static bool refuse_object(machine *m, const char *module, int nm, const char *name, int nn)
{
    return qm_fail(
        m->e, QM_EUNSUPPORTED,
        "%s: holds a Python object (%.*s.%.*s), not only tensors; load it where you trust it and save the "
        "state dict alone: torch.save(model.state_dict(), file)",
        m->c->what, nm, module, nn, name);
}

/* ---- the stack ------------------------------------------------------------------------------ */

static bool pop(machine *m, uint32_t *node)
{
    if (m->depth == 0 || m->stack[m->depth - 1] == MARK)
        return broken(m, "an operand is missing");
    *node = m->stack[--m->depth];
    return true;
}

/* The node on top, which must be of this kind. */
static bool top(machine *m, qm_pickle_kind kind, uint32_t *node)
{
    if (m->depth == 0 || m->stack[m->depth - 1] == MARK || m->p.node[m->stack[m->depth - 1]].kind != kind)
        return broken(m, "an operation on something that has no such operation");
    *node = m->stack[m->depth - 1];
    return true;
}

/* Position of the last mark. */
static bool find_mark(machine *m, size_t *at)
{
    for (size_t i = m->depth; i-- > 0;)
        if (m->stack[i] == MARK) {
            *at = i;
            return true;
        }
    return broken(m, "a mark is missing");
}

/* A new node of what lies on the stack from position `from` on. */
static bool gather(machine *m, qm_pickle_kind kind, size_t from)
{
    if (!new_node(m, kind))
        return false;
    uint32_t made = (uint32_t)m->p.count - 1;
    for (size_t i = from; i < m->depth; i++)
        if (m->stack[i] == MARK)
            return broken(m, "an operand is missing");
        else if (!add_child(m, made, m->stack[i]))
            return false;
    m->depth = from;
    return push(m, made);
}

static bool tuple_of(machine *m, size_t n)
{
    return m->depth >= n ? gather(m, QM_PICKLE_TUPLE, m->depth - n) : broken(m, "an operand is missing");
}

static bool tuple_from_mark(machine *m)
{
    size_t mark = 0;
    if (!find_mark(m, &mark))
        return false;
    for (size_t i = mark + 1; i < m->depth; i++)
        m->stack[i - 1] = m->stack[i];
    m->depth--;
    return gather(m, QM_PICKLE_TUPLE, mark);
}

/* What lies above the mark goes into the container below it. */
static bool extend(machine *m, qm_pickle_kind kind)
{
    size_t mark = 0, end = m->depth;
    uint32_t into = 0;
    if (!find_mark(m, &mark))
        return false;
    m->depth = mark;
    if (!top(m, kind, &into))
        return false;
    if (kind == QM_PICKLE_DICT && (end - mark - 1) % 2 != 0)
        return broken(m, "a key has no value");
    for (size_t i = mark + 1; i < end; i++)
        if (!add_child(m, into, m->stack[i]))
            return false;
    return true;
}

static bool set_one(machine *m, qm_pickle_kind kind)
{
    uint32_t value = 0, key = 0, into = 0;
    return pop(m, &value) && (kind == QM_PICKLE_LIST || pop(m, &key)) && top(m, kind, &into)
           && (kind == QM_PICKLE_LIST || add_child(m, into, key)) && add_child(m, into, value);
}

/* ---- operands in the input ------------------------------------------------------------------ */

static bool push_text(machine *m, uint64_t length)
{
    const uint8_t *at = qm_cursor_take(m->c, length);
    qm_pickle_node *n = at ? new_node(m, QM_PICKLE_TEXT) : NULL;
    if (!n)
        return false;
    n->text = (const char *)at;
    n->length = length;
    return push(m, (uint32_t)m->p.count - 1);
}

/* Little-endian two's complement of any length; none that matters is longer than 8 bytes. */
static bool push_long(machine *m)
{
    uint8_t n = qm_cursor_u8(m->c);
    const uint8_t *p = qm_cursor_take(m->c, n);
    uint64_t value = 0;
    if (!p)
        return false;
    if (n > sizeof value)
        return broken(m, "a whole number of more than 64 bits");
    if (n > 0 && p[n - 1] & 0x80)
        value = UINT64_MAX;
    for (int i = n - 1; i >= 0; i--)
        value = value << 8 | p[i];
    return push_integer(m, QM_PICKLE_INT, (int64_t)value);
}

/* A line up to '\n', which is passed over. */
static bool take_line(machine *m, const char **text, int *length)
{
    enum { LONGEST = 256 };
    const char *from = (const char *)m->c->base + m->c->pos;
    for (int n = 0; n < LONGEST; n++) {
        if (!qm_cursor_take(m->c, 1))
            return false;
        if (from[n] == '\n') {
            *text = from;
            *length = n;
            return true;
        }
    }
    return broken(m, "a name is too long");
}

static bool is_name(const char *known, const char *module, int nm, const char *name, int nn)
{
    return strlen(known) == (size_t)nm + 1 + (size_t)nn && memcmp(known, module, (size_t)nm) == 0
           && known[nm] == ' ' && memcmp(known + nm + 1, name, (size_t)nn) == 0;
}

enum { ORDERED_DICT = -1 };

static bool push_global(machine *m)
{
    const char *module = NULL, *name = NULL;
    int nm = 0, nn = 0;
    if (!take_line(m, &module, &nm) || !take_line(m, &name, &nn))
        return false;
    if (is_name("collections OrderedDict", module, nm, name, nn))
        return push_integer(m, QM_PICKLE_GLOBAL, ORDERED_DICT);
    for (int i = 0; m->known[i]; i++)
        if (is_name(m->known[i], module, nm, name, nn))
            return push_integer(m, QM_PICKLE_GLOBAL, i);
    for (int i = 0; i < nm + nn; i++) { /* both go into a message */
        unsigned char letter = (unsigned char)(i < nm ? module[i] : name[i - nm]);
        if (letter < ' ' || letter > '~')
            return broken(m, "a name is not text");
    }
    return refuse_object(m, module, nm, name, nn);
}

/* ---- calls ---------------------------------------------------------------------------------- */

/* OrderedDict(()) or, from Python 2, OrderedDict(([[key, value], …],)). */
static bool make_dict(machine *m, const qm_pickle_node *arguments)
{
    uint32_t dict = (uint32_t)m->p.count;
    uint32_t given = arguments->count ? m->p.cell[arguments->first].node : NO_NODE;
    if (!new_node(m, QM_PICKLE_DICT))
        return false;
    if (given != NO_NODE) {
        qm_pickle_node list = m->p.node[given];
        if (list.kind != QM_PICKLE_LIST)
            return broken(m, "a dictionary of something that is no list");
        for (uint32_t i = 0, at = list.first; i < list.count; i++, at = m->p.cell[at].next) {
            qm_pickle_node pair = m->p.node[m->p.cell[at].node];
            if ((pair.kind != QM_PICKLE_LIST && pair.kind != QM_PICKLE_TUPLE) || pair.count != 2)
                return broken(m, "a dictionary of something that are no pairs");
            uint32_t key = m->p.cell[pair.first].node, value = m->p.cell[pair.last].node;
            if (!add_child(m, dict, key) || !add_child(m, dict, value))
                return false;
        }
    }
    return push(m, dict);
}

static bool call(machine *m)
{
    uint32_t arguments = 0, function = 0;
    if (!pop(m, &arguments) || !pop(m, &function))
        return false;
    qm_pickle_node given = m->p.node[arguments], *f = &m->p.node[function];
    if (f->kind != QM_PICKLE_GLOBAL || given.kind != QM_PICKLE_TUPLE)
        return broken(m, "a call of something that cannot be called");
    if (f->integer == ORDERED_DICT)
        return given.count <= 1 ? make_dict(m, &given) : broken(m, "a dictionary of several things");
    if (!new_node(m, QM_PICKLE_CALL))
        return false;
    uint32_t made = (uint32_t)m->p.count - 1;
    return add_child(m, made, function) && add_child(m, made, arguments) && push(m, made);
}

/* Attributes of a dictionary (torch hangs _metadata on its state dicts) are dropped; other objects have none. */
static bool set_state(machine *m)
{
    uint32_t state = 0, object = 0;
    return pop(m, &state) && top(m, QM_PICKLE_DICT, &object);
}

static bool persistent(machine *m)
{
    uint32_t id = 0;
    if (!pop(m, &id) || !new_node(m, QM_PICKLE_PERSISTENT))
        return false;
    uint32_t made = (uint32_t)m->p.count - 1;
    return add_child(m, made, id) && push(m, made);
}

/* ---- memo ----------------------------------------------------------------------------------- */

static bool put(machine *m, uint32_t index)
{
    if (m->depth == 0 || m->stack[m->depth - 1] == MARK)
        return broken(m, "nothing to remember");
    if (index >= QM_PICKLE_NODES)
        return broken(m, "it remembers too much");
    size_t before = m->memo_room;
    if (!reserve(m, (void **)&m->memo, &m->memo_room, (size_t)index + 1, sizeof *m->memo))
        return false;
    for (size_t i = before; i < m->memo_room; i++)
        m->memo[i] = NO_NODE;
    m->memo[index] = m->stack[m->depth - 1];
    return true;
}

static bool get(machine *m, uint32_t index)
{
    if (index >= m->memo_room || m->memo[index] == NO_NODE)
        return broken(m, "something is used that was never made");
    return push(m, m->memo[index]);
}

/* ---- the opcodes ---------------------------------------------------------------------------- */

static bool refuse_opcode(machine *m, uint8_t opcode)
{
    return qm_fail(
        m->e, QM_EUNSUPPORTED,
        "%s: its pickle has opcode 0x%02x at byte %" PRIu64
        ", which no state dict of torch.save needs; load it where you trust it and save the state dict alone "
        "with torch.save's own protocol",
        m->c->what, opcode, m->c->pos - 1);
}

static bool push_mark(machine *m) { return push(m, MARK); }

/* One opcode; *end when it was the last. */
static bool step(machine *m, bool *end)
{
    uint8_t opcode = qm_cursor_u8(m->c);
    if (m->e->code)
        return false;
    switch (opcode) {
    case 0x80:
        qm_cursor_u8(m->c);
        return true; /* PROTO; opcodes of later ones are refused one by one */
    case '.':
        *end = true;
        return true;
    case '(':
        return push_mark(m);
    case 'N':
        return push_node(m, QM_PICKLE_NONE);
    case 0x88:
        return push_integer(m, QM_PICKLE_BOOL, 1);
    case 0x89:
        return push_integer(m, QM_PICKLE_BOOL, 0);
    case 'K':
        return push_integer(m, QM_PICKLE_INT, qm_cursor_u8(m->c));
    case 'M': {
        uint8_t low = qm_cursor_u8(m->c);
        return push_integer(m, QM_PICKLE_INT, low | qm_cursor_u8(m->c) << 8);
    }
    case 'J':
        return push_integer(m, QM_PICKLE_INT, (int32_t)qm_cursor_u32(m->c));
    case 0x8a:
        return push_long(m);
    case 'G':
        qm_cursor_u64(m->c);
        return push_node(m, QM_PICKLE_FLOAT); /* no tensor depends on one */
    case 'X':
        return push_text(m, qm_cursor_u32(m->c));
    case 'U':
        return push_text(m, qm_cursor_u8(m->c));
    case ')':
        return push_node(m, QM_PICKLE_TUPLE);
    case ']':
        return push_node(m, QM_PICKLE_LIST);
    case '}':
        return push_node(m, QM_PICKLE_DICT);
    case 0x8f:
        return push_node(m, QM_PICKLE_LIST); /* a set, and with these opcodes an empty one */
    case 't':
        return tuple_from_mark(m);
    case 0x85:
        return tuple_of(m, 1);
    case 0x86:
        return tuple_of(m, 2);
    case 0x87:
        return tuple_of(m, 3);
    case 'a':
        return set_one(m, QM_PICKLE_LIST);
    case 'e':
        return extend(m, QM_PICKLE_LIST);
    case 's':
        return set_one(m, QM_PICKLE_DICT);
    case 'u':
        return extend(m, QM_PICKLE_DICT);
    case 'c':
        return push_global(m);
    case 'R':
    case 0x81:
        return call(m); /* NEWOBJ differs in what Python does, and here nothing is done */
    case 'b':
        return set_state(m);
    case 'Q':
        return persistent(m);
    case 'q':
        return put(m, qm_cursor_u8(m->c));
    case 'r':
        return put(m, qm_cursor_u32(m->c));
    case 'h':
        return get(m, qm_cursor_u8(m->c));
    case 'j':
        return get(m, qm_cursor_u32(m->c));
    default:
        return refuse_opcode(m, opcode);
    }
}

bool qm_pickle_read(qm_pickle *p, qm_cursor *c, const char *const *known, qm_err *e)
{
    machine m = {.c = c, .e = e, .known = known};
    bool end = false, ok = true;
    while (ok && !end)
        ok = step(&m, &end) && !e->code;
    ok = ok && pop(&m, &m.p.root) && (m.depth == 0 || broken(&m, "more than one thing is left at its end"));
    free(m.stack);
    free(m.memo);
    if (ok)
        *p = m.p;
    else
        qm_pickle_free(&m.p);
    return ok;
}

void qm_pickle_free(qm_pickle *p)
{
    free(p->node);
    free(p->cell);
    *p = (qm_pickle){0};
}

const qm_pickle_node *qm_pickle_child(const qm_pickle *p, const qm_pickle_node *n, uint32_t i)
{
    uint32_t at = n->first;
    while (i-- > 0)
        at = p->cell[at].next;
    return &p->node[p->cell[at].node];
}
