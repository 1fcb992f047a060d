/* bind.h: index of the Lua binding.  Nothing outside lua/ knows lua_State.
 *
 * Boxes.  A C object is a userdata holding one pointer.  The box is made first, empty and with its
 * metatable, and only then is the work done: if memory runs out half-way nothing leaks, and __gc of an
 * empty box does nothing.
 *
 * Errors.  A C failure is a qm_err; qml_raise turns it into a Lua error object
 * {kind=, code=, message=} whose tostring is the message.
 */
#ifndef QML_BIND_H
#define QML_BIND_H

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include "../core/file.h"
#include "../core/format.h"
#include "../core/strided.h"
#include "../core/tensor.h"

/* LuaJIT's headers do not say so, and then nobody knows that code behind a check is only reached if it passed. */
int lua_error(lua_State *L) __attribute__((noreturn));
int luaL_error(lua_State *L, const char *fmt, ...) __attribute__((noreturn));
int luaL_argerror(lua_State *L, int arg, const char *message) __attribute__((noreturn));

int luaopen_qmoon_core(lua_State *L);

/* What a box is, as memory: the object (NULL once it is closed), and how many jobs that are running use it. A
 * progress function may do anything; an object that is held refuses to be closed. */
typedef struct qml_userdata {
    void *object;
    int held;
    uint64_t bytes; /* see qml_count_bytes */
} qml_userdata;

/* From bind.c */
int qml_raise(lua_State *L, const qm_err *e) __attribute__((noreturn));
void **qml_box(lua_State *L, const char *class);
void *qml_check(lua_State *L, int arg,
                const char *class); /* an open box of that class, or an argument error */
void qml_check_idle(lua_State *L, int arg, const char *class); /* an argument error if it is held */
void qml_hold(lua_State *L, int index,
              int by); /* adds to the holds of a box, and of those in a table of tables */
const char *qml_check_text(lua_State *L, int arg); /* a string without a zero byte: a path, a name */
void *qml_field_box(lua_State *L, int table, const char *name,
                    const char *class); /* NULL when the field is nil */
/* The collector does not know how much memory lies behind a box.  Ops make tensors by the hundred, so what
 * they make is counted; when it has become twice what was left after the last time, and 256 MiB more,
 * everything that is not referred to is collected. */
void qml_count_bytes(lua_State *L, int index, uint64_t bytes);
void qml_uncount_bytes(lua_State *L, int index); /* the object is gone */
void qml_class(lua_State *L, const char *class, const luaL_Reg *methods, lua_CFunction gc);
void qml_functions(lua_State *L, const luaL_Reg *functions); /* into the table on top */

/* Fields of the table at `table`.  A wrong type is an error naming the field. */
const char *qml_field_string(lua_State *L, int table, const char *name, const char *absent);
double qml_field_number(lua_State *L, int table, const char *name, double absent);
bool qml_field_boolean(lua_State *L, int table, const char *name, bool absent);
uint64_t qml_check_size(lua_State *L, int arg, const char *what); /* a whole number 0 … 2^53 */
uint64_t qml_field_size(lua_State *L, int table, const char *name, uint64_t absent);

void qml_push_shape(lua_State *L, const qm_shape *s);
void qml_check_shape(lua_State *L, int arg, qm_shape *s);
void qml_push_errsum(lua_State *L, const qm_errsum *s); /* bind_tensor.c */
/* A format by name, or one made at run time. */
const qm_format *qml_check_format(lua_State *L, int arg);
void qml_push_format(lua_State *L, const qm_format *f); /* bind_tensor.c */
/* A block size: a whole number, "row" (QM_BLOCK_ROW), or nil, which is `absent`. */
uint32_t qml_opt_block(lua_State *L, int arg, uint32_t absent);
uint32_t qml_field_block(lua_State *L, int table); /* the field "block"; 0 when it is nil */

/* From bind_source.c.  Fields of a source: `strides` with `shape` (checked to lie in the file; ndim 0
 * without), `files` of the planes and, behind them, of the nested scales. */
void qml_field_strided(lua_State *L, int table, const qm_infile *f, uint64_t at, unsigned bits,
                       qm_strided *s);
void qml_field_files(lua_State *L, int table, int planes, qm_infile *file, qm_infile *plane[QM_MAX_PLANES],
                     qm_infile **nested);
qm_round qml_field_round(lua_State *L, int table, const char *field);
int qml_view_strided(lua_State *L); /* core.view, where `strides` or a list `at` is given */
int qml_view_planes(lua_State *L);

/* From bind_stream.c.  Runs `body` on (argument 1, a copy of the table in argument `job`, argument 3) with
 * all that the table uses held. */
int qml_with_job(lua_State *L, int job, lua_CFunction body);

/* The field "progress" of a job: a function of bytes, or nil.  It stays on the stack while the job runs. */
typedef struct qml_progress {
    lua_State *L;
    int function; /* stack index, or 0 */
    bool failed;  /* it raised; its error is on the stack */
} qml_progress;
void qml_progress_read(lua_State *L, int table, qml_progress *p);
void qml_progress_call(void *progress, uint64_t bytes);
void qml_progress_check(lua_State *L, const qml_progress *p, bool ok,
                        const qm_err *e); /* raises what went wrong */

#define QML_INFILE   "qmoon.infile"
#define QML_OUTFILE  "qmoon.outfile"
#define QML_TENSOR   "qmoon.tensor"
#define QML_FORMAT   "qmoon.format"
#define QML_POOL     "qmoon.pool"
#define QML_COURIERS "qmoon.couriers"
#define QML_REGEX    "qmoon.regex"
#define QML_DEVICE   "qmoon.device"
#define QML_STEP     "qmoon.step"
#define QML_CACHE    "qmoon.kv_cache"

/* One each; every one adds its functions to the table on top of the stack. */
void qml_open_text(lua_State *L);      /* bind_text.c: json, pack, sha256, regex */
void qml_open_files(lua_State *L);     /* bind_file.c: files, folders, safetensors, gguf */
void qml_open_tensor(lua_State *L);    /* bind_tensor.c: formats, tensors */
void qml_open_ops(lua_State *L);       /* bind_ops.c: inference */
void qml_open_format(lua_State *L);    /* bind_format.c: formats made at run time */
void qml_open_stream(lua_State *L);    /* bind_stream.c: pool, stream */
void qml_open_load(lua_State *L);      /* bind_load.c: weights into memory, plans of it; after GPUs */
void qml_open_source(lua_State *L);    /* bind_source.c: torch, gather */
void qml_open_tokenizer(lua_State *L); /* bind_tokenizer.c: vocabularies, splitters, matchers, normal forms */
void qml_open_cuda(lua_State *L);      /* bind_cuda.c: GPUs; after tensors */
void qml_open_system(lua_State *L);    /* bind_system.c: time, terminal, memory, modules */
void qml_open_edit(lua_State *L);      /* bind_edit.c: lines of a terminal */
void qml_open_explore(lua_State *L);   /* bind_explore.c: statistics, slices, arithmetic */

#endif
