/* codebook.c: see codebook.h. */
#include "codebook.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "formats/table.h"

extern const qm_fast qm_avx2_codebook;

static const qm_fast *const codebook_fast[QM_SIMD_COUNT] = {[QM_AVX2] = &qm_avx2_codebook};

enum { LONGEST_NAME = 63, LARGEST_BLOCK = 1 << 30 };

typedef struct made {
    qm_format format; /* first: a qm_format * of a made format points here, too */
    int refs;
    char name[LONGEST_NAME + 1], doc[64];
    qm_table table;
} made;

const qm_format *qm_format_ref(const qm_format *f)
{
    if (f && f->made)
        ((made *)(uintptr_t)f)->refs++;
    return f;
}

void qm_format_unref(const qm_format *f)
{
    made *m = (made *)(uintptr_t)f;
    if (f && f->made && --m->refs == 0)
        free(m);
}

int qm_codebook_count(const qm_format *f) { return f->table ? (int)f->table->count : 0; }
float qm_codebook_level(const qm_format *f, int i) { return f->table->level[i]; }

/* Names take part in specs such as "mine:128". */
static bool name_allowed(const char *name, qm_err *e)
{
    size_t n = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-");
    if (n == 0 || name[n] || n > LONGEST_NAME)
        return qm_fail(e, QM_EFAIL,
                       "format name '%.80s': 1 to %d letters, digits, '_', '.' and '-' make a name", name,
                       LONGEST_NAME);
    if (qm_format_find(name))
        return qm_fail(e, QM_EFAIL, "format name '%s' is taken by a format of the program; choose another",
                       name);
    return true;
}

static made *made_new(const char *name, uint32_t block, qm_err *e)
{
    made *m = NULL;
    if (!name_allowed(name, e))
        return NULL;
    if (block != QM_BLOCK_ROW && (block < 1 || block > LARGEST_BLOCK))
        qm_fail(e, QM_EFAIL, "format '%s': a block is 1 to %d values, or a row, not %" PRIu32, name,
                LARGEST_BLOCK, block);
    else if (!(m = calloc(1, sizeof *m)))
        qm_fail(e, QM_ENOFIT, "out of memory for format '%s'", name);
    if (!m)
        return NULL;
    memcpy(m->name, name, strlen(name));
    m->refs = 1;
    m->format = (qm_format){
        .name = m->name,
        .doc = m->doc,
        .source = "made at run time",
        .block = block == QM_BLOCK_ROW ? 0 : block,
        .block_min = 1,
        .block_max = LARGEST_BLOCK,
        .any_block = true,
        .over_rows = true,
        .gguf_type = -1,
        .made = true,
    };
    return m;
}

/* ---- codebooks ---------------------------------------------------------------------------------- */

static bool levels_allowed(const char *name, const float *level, int count, qm_err *e)
{
    if (count < 2 || count > QM_MAX_LEVELS)
        return qm_fail(e, QM_EFAIL, "codebook '%s': 2 to %d levels make a table, not %d", name, QM_MAX_LEVELS,
                       count);
    for (int i = 0; i < count; i++)
        if (!isfinite(level[i]))
            return qm_fail(e, QM_EFAIL, "codebook '%s': level %d is %s", name, i + 1,
                           isnan(level[i]) ? "not a number" : "infinite");
    return true;
}

/* Codes by ascending level.  Of equal levels only the first is used. */
static void sort_codes(qm_table *t)
{
    t->ascending = true;
    for (uint32_t i = 0; i < t->count; i++) {
        uint32_t r = i;
        for (; r > 0 && t->level[t->code[r - 1]] > t->level[i]; r--)
            t->code[r] = t->code[r - 1];
        t->code[r] = (uint8_t)i;
        t->ascending = t->ascending && r == i;
    }
    for (uint32_t r = 1; r < t->count; r++)
        if (t->level[t->code[r]] == t->level[t->code[r - 1]]) {
            t->code[r] = t->code[r - 1];
            t->ascending = false;
        }
}

/* The largest f32 that is not above the middle of a and b: f32 values above it are nearer to b. */
static float threshold(float a, float b)
{
    double sum = (double)a + (double)b, part = sum - (double)a;
    double lost = ((double)a - (sum - part)) + ((double)b - part); /* what rounding took from the sum */
    float middle = (float)(sum / 2);
    if ((double)middle > sum / 2 || ((double)middle == sum / 2 && lost < 0))
        middle = nextafterf(middle, -INFINITY);
    return middle;
}

/* Node j of layer k (2^k <= j < 2^(k+1)) stands between two ranks; see table.h. */
static void plant_tree(qm_table *t)
{
    for (uint32_t k = 0; k < t->bits; k++)
        for (uint32_t i = 0; i < 1u << k; i++) {
            uint32_t above = (2 * i + 1) << (t->bits - 1 - k); /* the lower of the ranks above it */
            t->tree[(1u << k) + i] = above < t->count
                                         ? threshold(t->level[t->code[above - 1]], t->level[t->code[above]])
                                         : INFINITY;
        }
}

/* Half of the widest gap, the ends counting whole. */
static double widest_error(const qm_table *t)
{
    const float *level = t->level;
    double low = (double)level[t->code[0]], high = (double)level[t->code[t->count - 1]];
    double most = fmax(low + 1, 1 - high);
    for (uint32_t r = 1; r < t->count; r++)
        most = fmax(most, ((double)level[t->code[r]] - (double)level[t->code[r - 1]]) / 2);
    return most * 1.00001;
}

const qm_format *qm_codebook_new(const char *name, const float *level, int count, uint32_t block, qm_err *e)
{
    made *m;
    if (!levels_allowed(name, level, count, e) || !(m = made_new(name, block, e)))
        return NULL;
    qm_table *t = &m->table;
    float most = 1;
    t->count = (uint32_t)count;
    for (t->bits = 1; 1u << t->bits < t->count; t->bits++)
        ;
    for (int i = 0; i < count; i++)
        most = fmaxf(most, fabsf(level[i]));
    for (int i = 0; i < count; i++)
        t->level[i] = level[i] / most;
    sort_codes(t);
    plant_tree(t);
    snprintf(m->doc, sizeof m->doc, "codebook: %d levels times the block's largest magnitude", count);
    m->format.plane[0] = (qm_plane){"codes", QM_U8, t->bits, 0};
    m->format.plane[1] = (qm_plane){"absmax", QM_F32, 0, sizeof(float)};
    m->format.bound = widest_error(t);
    m->format.table = t;
    m->format.fast = codebook_fast;
    m->format.encode = qm_table_encode;
    m->format.decode = qm_table_decode;
    return &m->format;
}

/* ---- opaque formats ----------------------------------------------------------------------------- */

const qm_format *qm_opaque_new(const char *name, unsigned bits, unsigned scales, uint32_t block, qm_err *e)
{
    if (bits < 1 || bits > 8 || scales > 64) {
        qm_fail(e, QM_EFAIL, "format '%s': codes have 1 to 8 bits and blocks up to 64 scales, not %u and %u",
                name, bits, scales);
        return NULL;
    }
    made *m = made_new(name, block, e);
    if (!m)
        return NULL;
    snprintf(m->doc, sizeof m->doc, "%u-bit codes, %u scales a block, by functions", bits, scales);
    m->format.plane[0] = (qm_plane){"codes", QM_U8, bits, 0};
    if (scales)
        m->format.plane[1] = (qm_plane){"scales", QM_F32, 0, scales * (unsigned)sizeof(float)};
    return &m->format;
}
