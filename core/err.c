/* err.c: failures, the interrupt flag, element types and shapes (see qm.h). */
#define _GNU_SOURCE /* strerror_r that returns the text */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "qm.h"
#include "utf8.h"

/* A message is one line of UTF-8 whatever a hostile file put into its names: control characters (line ends,
 * terminal escapes) and bytes that are no text, a character cut at the end too, become '?'. */
static void clean(char *msg)
{
    uint8_t *p = (uint8_t *)msg;
    size_t left = strlen(msg), step;
    for (; left > 0; p += step, left -= step) {
        step = qm_utf8_step(p, left);
        bool c1 = step == 2 && p[0] == 0xc2 && p[1] < 0xa0; /* U+0080 … U+009F: control characters as well */
        if (step == 0 || *p < 0x20 || *p == 0x7f || c1) {
            *p = '?';
            step = 1;
        }
    }
}

#undef qm_fail /* the analyser's: see qm.h */
#undef qm_fail_errno

bool qm_fail(qm_err *e, qm_code code, const char *fmt, ...)
{
    if (e->code)
        return false;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    clean(e->msg);
    e->code = code;
    return false;
}

bool qm_fail_errno(qm_err *e, const char *fmt, ...)
{
    int number = errno;
    char text[sizeof e->msg], reason[128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return qm_fail(e, QM_EFAIL, "%.380s: %s", text, strerror_r(number, reason, sizeof reason));
}

/* Lock-free, hence fit for a signal handler and for every thread that polls. */
static atomic_bool interrupted;

void qm_interrupt_request(void) { atomic_store(&interrupted, true); }
void qm_interrupt_clear(void) { atomic_store(&interrupted, false); }
bool qm_interrupted(void) { return atomic_load(&interrupted); }

/* Source of names and widths: huggingface/safetensors, enum Dtype, and its torch binding.  torch has no
 * 6-bit floats, and packs two 4-bit ones into a byte. */
const qm_dtype_info qm_dtypes[QM_DTYPE_COUNT] = {
    [QM_BOOL] = {"bool", "BOOL", "bool", 8},
    [QM_F4] = {"f4", "F4", "float4_e2m1fn_x2", 4},
    [QM_F6_E2M3] = {"f6_e2m3", "F6_E2M3", NULL, 6},
    [QM_F6_E3M2] = {"f6_e3m2", "F6_E3M2", NULL, 6},
    [QM_U8] = {"u8", "U8", "uint8", 8},
    [QM_I8] = {"i8", "I8", "int8", 8},
    [QM_F8_E5M2] = {"f8_e5m2", "F8_E5M2", "float8_e5m2", 8},
    [QM_F8_E4M3] = {"f8_e4m3", "F8_E4M3", "float8_e4m3fn", 8},
    [QM_F8_E8M0] = {"f8_e8m0", "F8_E8M0", "float8_e8m0fnu", 8},
    [QM_F8_E4M3FNUZ] = {"f8_e4m3fnuz", "F8_E4M3FNUZ", "float8_e4m3fnuz", 8},
    [QM_F8_E5M2FNUZ] = {"f8_e5m2fnuz", "F8_E5M2FNUZ", "float8_e5m2fnuz", 8},
    [QM_I16] = {"i16", "I16", "int16", 16},
    [QM_U16] = {"u16", "U16", "uint16", 16},
    [QM_F16] = {"f16", "F16", "float16", 16},
    [QM_BF16] = {"bf16", "BF16", "bfloat16", 16},
    [QM_I32] = {"i32", "I32", "int32", 32},
    [QM_U32] = {"u32", "U32", "uint32", 32},
    [QM_F32] = {"f32", "F32", "float32", 32},
    [QM_C64] = {"c64", "C64", "complex64", 64},
    [QM_F64] = {"f64", "F64", "float64", 64},
    [QM_I64] = {"i64", "I64", "int64", 64},
    [QM_U64] = {"u64", "U64", "uint64", 64},
};

int64_t qm_shape_count(const qm_shape *s)
{
    int64_t count = 1;
    for (int i = 0; i < s->ndim; i++)
        if (s->dim[i] < 0 || __builtin_mul_overflow(count, s->dim[i], &count) || count > QM_MAX_VALUES)
            return -1;
    return count;
}

int64_t qm_gcd(int64_t a, int64_t b)
{
    while (b) {
        int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

char *qm_shape_text(const qm_shape *s, char *buf, size_t size)
{
    size_t used = (size_t)snprintf(buf, size, "[");
    for (int i = 0; i < s->ndim && used < size; i++)
        used += (size_t)snprintf(buf + used, size - used, "%s%" PRId64, i ? " x " : "", s->dim[i]);
    if (used < size)
        snprintf(buf + used, size - used, "]");
    return buf;
}
