/* gpu.c: see gpu.h. */
#include "gpu.h"

#include <math.h>

#include "../../core/half.h"

static void need(const void *p, const qm_err *e)
{
    if (p)
        return;
    printf("  %s\n", e->msg);
    exit(1);
}

qm_cuda *gpu(void)
{
    static qm_cuda *opened;
    qm_err e = {0};
    if (!opened)
        need(opened = qm_cuda_open(0, &e), &e);
    return opened;
}

qm_cuda_stream *gpu_stream(void)
{
    static qm_cuda_stream *s;
    qm_err e = {0};
    if (!s)
        need(s = qm_cuda_stream_new(gpu(), &e), &e);
    return s;
}

bool gpu_test_small(void)
{
    const char *v = getenv("QMOON_GPU_TEST");
    return v && strcmp(v, "small") == 0;
}

void *gpu_copy_of(const void *data, size_t size)
{
    qm_err e = {0};
    void *p = qm_cuda_alloc(gpu(), size, &e);
    CHECKF(p && qm_cuda_upload(gpu(), p, data, size, &e), "%s", e.msg);
    return p;
}

void gpu_fetch(void *to, const void *from, size_t size)
{
    qm_err e = {0};
    CHECKF(qm_cuda_download(gpu(), to, from, size, &e), "%s", e.msg);
}

/* ---- planes -------------------------------------------------------------------------------------- */

enum { GUARD = 256, FILLER = 0xa5 };

planes planes_new(const qm_format *f, const qm_codec *c, size_t n)
{
    planes p = {.format = f};
    for (int i = 0; i < qm_format_planes(f); i++) {
        p.size[i] = qm_plane_size(f, c, i, n);
        uint8_t *filler = malloc(p.size[i] + 2 * GUARD);
        memset(filler, FILLER, p.size[i] + 2 * GUARD);
        p.here[i] = calloc(p.size[i] + 1, 1);
        p.whole[i] = gpu_copy_of(filler, p.size[i] + 2 * GUARD);
        p.there[i] = p.whole[i] + GUARD;
        free(filler);
    }
    return p;
}

void planes_upload(planes *p)
{
    qm_err e = {0};
    for (int i = 0; i < qm_format_planes(p->format); i++)
        CHECKF(qm_cuda_upload(gpu(), p->there[i], p->here[i], p->size[i], &e), "%s", e.msg);
}

static uint8_t *fetched(const planes *p, int i)
{
    uint8_t *bytes = malloc(p->size[i] + 2 * GUARD);
    gpu_fetch(bytes, p->whole[i], p->size[i] + 2 * GUARD);
    return bytes;
}

static bool any_nan(const float *x, size_t n)
{
    for (size_t i = 0; x && i < n; i++)
        if (isnan(x[i]))
            return true;
    return false;
}

int64_t planes_differing(const planes *p, const qm_codec *c, size_t n, const float *values)
{
    int64_t found = -1;
    for (int i = 0; i < qm_format_planes(p->format); i++) {
        uint8_t *bytes = fetched(p, i);
        size_t each = qm_plane_size(p->format, c, i, c->block);
        for (size_t g = 0; memcmp(bytes + GUARD, p->here[i], p->size[i]) && g * c->block < n; g++) {
            size_t count = n - g * c->block < c->block ? n - g * c->block : c->block;
            size_t at = g * each, size = p->size[i] - at < each ? p->size[i] - at : each;
            if (memcmp(bytes + GUARD + at, p->here[i] + at, size) == 0
                || any_nan(values ? values + g * c->block : NULL, count))
                continue;
            found = found < 0 || (int64_t)g < found ? (int64_t)g : found;
            break;
        }
        free(bytes);
    }
    return found;
}

bool planes_guarded(const planes *p)
{
    bool ok = true;
    for (int i = 0; i < qm_format_planes(p->format); i++) {
        uint8_t *bytes = fetched(p, i);
        for (size_t j = 0; j < GUARD; j++)
            ok = ok && bytes[j] == FILLER && bytes[GUARD + p->size[i] + j] == FILLER;
        free(bytes);
    }
    return ok;
}

void planes_free(planes *p)
{
    for (int i = 0; i < QM_MAX_PLANES; i++) {
        free(p->here[i]);
        qm_cuda_free(gpu(), p->whole[i]);
    }
}

qm_cuda_coded coded_there(const planes *p, const qm_codec *c)
{
    qm_cuda_coded coded = {.format = p->format, .codec = *c};
    memcpy(coded.plane, p->there, sizeof coded.plane);
    return coded;
}

/* ---- elements ------------------------------------------------------------------------------------ */

void *elements_of(qm_dtype t, const float *x, size_t n)
{
    uint8_t *e = malloc(n * sizeof *x + 1);
    for (size_t i = 0; i < n; i++) {
        uint16_t h = t == QM_F16 ? qm_f32_to_f16(x[i]) : qm_f32_to_bf16(x[i]);
        if (t == QM_F32)
            memcpy(e + 4 * i, &x[i], 4);
        else
            memcpy(e + 2 * i, &h, 2);
    }
    return e;
}

void values_of_elements(qm_dtype t, const void *e, size_t n, float *x)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h = t == QM_F32 ? 0 : ((const uint16_t *)e)[i];
        x[i] = t == QM_F32 ? ((const float *)e)[i] : t == QM_F16 ? qm_f16_to_f32(h) : qm_bf16_to_f32(h);
    }
}

bool same_elements(qm_dtype t, const void *a, const void *b, size_t n)
{
    size_t size = t == QM_F32 ? 4 : 2;
    if (memcmp(a, b, size * n) == 0)
        return true;
    for (size_t i = 0; i < n; i++) {
        float x, y;
        values_of_elements(t, (const char *)a + size * i, 1, &x);
        values_of_elements(t, (const char *)b + size * i, 1, &y);
        if (memcmp((const char *)a + size * i, (const char *)b + size * i, size) && !(isnan(x) && isnan(y)))
            return false;
    }
    return true;
}
