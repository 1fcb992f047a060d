/* strided.c: see strided.h. */
#include "strided.h"

#include <string.h>

bool qm_strided_is_contiguous(const qm_strided *s)
{
    int64_t expected = 1;
    if (qm_shape_count(&s->shape) == 0)
        return true;
    for (int i = s->shape.ndim - 1; i >= 0; i--) {
        if (s->shape.dim[i] != 1 && s->stride[i] != expected)
            return false;
        expected *= s->shape.dim[i];
    }
    return true;
}

int64_t qm_strided_span(const qm_strided *s)
{
    int64_t last = 0, step;
    if (qm_shape_count(&s->shape) < 0)
        return -1;
    if (qm_shape_count(&s->shape) == 0)
        return 0;
    for (int i = 0; i < s->shape.ndim; i++)
        if (s->stride[i] < 0 || __builtin_mul_overflow(s->shape.dim[i] - 1, s->stride[i], &step)
            || __builtin_add_overflow(last, step, &last))
            return -1;
    return last == INT64_MAX ? -1 : last + 1;
}

/* n elements a stride apart, back to back.  A constant size is what makes the loop a loop of loads. */
static void pick(uint8_t *dst, const uint8_t *src, uint64_t n, uint64_t stride, unsigned item)
{
    uint64_t step = stride * item;
#define PICK(size)                                            \
    case size:                                                \
        for (uint64_t i = 0; i < n; i++)                      \
            memcpy(dst + i * (size), src + i * step, (size)); \
        break
    switch (stride == 1 ? 0 : item) {
        PICK(1);
        PICK(2);
        PICK(4);
        PICK(8);
    default:
        memcpy(dst, src, n * item);
    }
#undef PICK
}

bool qm_strided_read(const qm_strided *s, const qm_infile *f, uint64_t at, unsigned item, uint64_t first,
                     uint64_t n, void *dst, qm_err *e)
{
    if (!qm_infile_intact(f, e)) /* the map is read, since single elements are no matter for pread */
        return false;
    int inner = s->shape.ndim - 1;
    uint64_t cols = (uint64_t)s->shape.dim[inner];
    uint8_t *to = dst;
    while (n > 0) {
        uint64_t row = first / cols, col = first % cols, offset = col * (uint64_t)s->stride[inner];
        for (int i = inner - 1; i >= 0; row /= (uint64_t)s->shape.dim[i], i--)
            offset += row % (uint64_t)s->shape.dim[i] * (uint64_t)s->stride[i];
        uint64_t run = cols - col < n ? cols - col : n;
        pick(to, f->map + at + offset * item, run, (uint64_t)s->stride[inner], item);
        to += run * item;
        first += run;
        n -= run;
    }
    return true;
}
