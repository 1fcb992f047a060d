/* format.h: what a number format is, and the registry of all of them.
 *
 * A format turns a group of f32 values into bytes and back.  Everything else about it is
 * computed from one descriptor: sizes, bits per weight, help, tests, GGUF type id.
 *
 * `ls core/formats` is the registry: the build lists that folder, and a file named q4_0.c
 * must define `const qm_format qm_format_q4_0`.  Adding a format is adding that file.
 * Beside it, core/formats/avx2/q4_0.c may define `const qm_fast qm_avx2_q4_0` (and
 * core/formats/avx512/ likewise): the same bytes, faster; the registry test holds it to that.
 *
 * The group functions use QM_FN helpers only and no libc beyond memcpy, so that nvcc can
 * compile the same file for the device.
 */
#ifndef QM_FORMAT_H
#define QM_FORMAT_H

#include "half.h"
#include "qm.h"

#define QM_MAX_PLANES 3

/* As a block size: one group is one row, whatever its length. */
#define QM_BLOCK_ROW UINT32_MAX

/* One contiguous byte array of a quantised tensor.  A group of `block` values takes
 * block * bits / 8 + bytes of it.  Planes with bits == 0 hold one item a group (a scale). */
typedef struct qm_plane {
    const char *name; /* "codes", "absmax", "blocks", ... */
    qm_dtype dtype;   /* as what a file declares it */
    unsigned bits;
    unsigned bytes;
} qm_plane;

/* What may vary between two uses of one format. */
typedef struct qm_codec {
    uint32_t block;  /* values per group; the row length for row formats */
    bool exact_zero; /* bitsandbytes formats: an all-zero block decodes to zeros even under
                      * double quantisation, instead of bitsandbytes' own byte 0x00 */
    bool nearest;    /* bitsandbytes formats: codes of the nearest level by IEEE arithmetic, as its
                      * CPU code finds them, instead of its CUDA kernels' */
    float factor;    /* formats with a tensor_range: qm_codec_measure sets it; 0 counts as 1 */
    const struct qm_table *table; /* codebooks: qm_codec_init sets it */
    const float *importance; /* of each column, as in llama.cpp's importance matrix; NULL: all are alike */
    uint32_t cols;           /* with importance: how many columns; qm_encode is then given whole rows */
} qm_codec;

typedef struct qm_format {
    const char *name;
    const char *doc;       /* one line */
    const char *source;    /* whose bytes these are: reference tool or paper */
    uint32_t block;        /* default group; 0: one group is one row */
    uint32_t block_min;    /* other groups allowed: powers of two from min to max; */
    uint32_t block_max;    /*   both 0 when the group is fixed */
    bool any_block;        /* every whole number from min to max, and whole rows: groups begin on a byte */
    bool over_rows;        /* groups ignore row ends: the tensor is one flat run of values,
                            * and the last group may be short (bitsandbytes) */
    bool float16;          /* quantises the value rounded to f16, whatever came in (LLM.int8) */
    int gguf_type;         /* ggml type id, or -1 */
    const char *gguf_name; /* "Q4_0", or NULL */
    qm_plane plane[QM_MAX_PLANES];

    /* Largest |x - decode(encode(x))| a test may find, in units of the group's absmax, plus
     * bound_rel * |x| for float formats. */
    double bound;
    double bound_rel;
    double bound_abs; /* plus this, where floats are subnormal; of the tensor's absmax with a tensor_range */

    /* Not 0: before encoding, the whole tensor is scaled so that its absmax becomes this (NVFP4).  Such a
     * format needs to have seen the tensor and cannot be streamed. */
    float tensor_range;

    /* One group: n values, n == block except in the last group of an over_rows tensor.  A format of
     * single values (block 1) has no groups and takes any n.
     * plane[i] points at this group's bytes.  Sums run in index order; no FMA. */
    void (*encode)(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[]);
    void (*decode)(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y);

    /* The same where columns differ in importance: that of each of the n values, and the mean square of
     * the row they are in (0 unless row_power).  NULL: this format takes no notice. */
    void (*encode_important)(const float *x, uint32_t n, const float *importance, float power,
                             uint8_t *const plane[]);
    bool row_power;

    /* Formats made at run time (codebook.h); zero for those of the folder. */
    bool made;
    const struct qm_table *table;      /* of a codebook */
    const struct qm_fast *const *fast; /* by qm_simd */
} qm_format;

/* Whole runs of groups: n values, all groups full except the last of an over_rows tensor.
 * Any may be NULL.  Must give the bytes that the group functions give. */
typedef struct qm_fast {
    void (*encode)(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[]);
    void (*decode)(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y);
    void (*encode_important)(const float *x, size_t n, const float *importance, float power,
                             uint8_t *const plane[]); /* n values of one row */
} qm_fast;

/* NULL-terminated, in file-name order. */
extern const qm_format *const qm_formats[];

/* NULL when there is none of that name / of that ggml type id. */
const qm_format *qm_format_find(const char *name);
const qm_format *qm_format_of_gguf(int type);

/* Fills c with the format's defaults for rows of `cols` values, or with `block` (or QM_BLOCK_ROW) when
 * it is not 0.  Fails when the format cannot take that block or that row length. `what` names the
 * tensor in the message. */
bool qm_codec_init(qm_codec *c, const qm_format *f, int64_t cols, uint32_t block, const char *what,
                   qm_err *e);

/* What a format with a tensor_range must know of all n values of the tensor; nothing for others. */
void qm_codec_measure(qm_codec *c, const qm_format *f, const float *x, size_t n);

/* The factor of a format with a tensor_range when `most` is the tensor's largest magnitude. */
float qm_format_factor(const qm_format *f, float most);

int qm_format_planes(const qm_format *f);

/* Bytes of plane i for n values. */
uint64_t qm_plane_size(const qm_format *f, const qm_codec *c, int i, uint64_t n);

double qm_format_bits(const qm_format *f, const qm_codec *c); /* bits per weight, scales included */

/* Whole runs, by the fastest code the CPU has. */
void qm_encode(const qm_format *f, const float *x, size_t n, const qm_codec *c, uint8_t *const plane[]);
void qm_decode(const qm_format *f, const uint8_t *const plane[], size_t n, const qm_codec *c, float *y);

#endif
