/* tokenizer_test.c: pieces, merging, cutting, matching and normal forms, against what huggingface/tokenizers
 * 0.23.3, sentencepiece 0.2.3 and Python 3.11's unicodedata give. */
#include "../../core/regex.h"
#include "../../core/tokenizer/charsmap.h"
#include "../../core/tokenizer/splitter.h"
#include "../../core/tokenizer/unicode.h"
#include "../../core/tokenizer/vocabulary.h"
#include "test.h"

#define NONE QM_NO_PIECE

static void text_is(const qm_bytes *got, const char *want)
{
    CHECKF(!got->failed && got->n == strlen(want) && memcmp(got->at ? got->at : "", want, got->n) == 0,
           "'%.*s' is not '%s'", (int)got->n, got->at ? got->at : "", want);
}

/* ---- vocabularies -------------------------------------------------------------------------- */

static qm_pieces pieces_of(const char *const *texts, size_t n)
{
    qm_err e = {0};
    qm_pieces p;
    CHECKF(qm_pieces_init(&p, n, &e), "%s", e.msg);
    for (size_t i = 0; i < n; i++)
        CHECKF(qm_pieces_add(&p, texts[i], strlen(texts[i]), (uint32_t)i, &e), "%s", e.msg);
    return p;
}

static void encodes(qm_vocabulary *v, const char *word, const char *want)
{
    for (int again = 0; again < 2; again++) { /* the second time from memory */
        qm_err e = {0};
        qm_ids ids = {0};
        char got[256] = "";
        CHECKF(qm_vocabulary_encode(v, word, strlen(word), &ids, &e), "%s", e.msg);
        for (size_t i = 0; i < ids.n && i < 20; i++)
            snprintf(got + strlen(got), sizeof got - strlen(got), i ? " %u" : "%u", ids.at[i]);
        CHECKF(strcmp(got, want) == 0, "%s: %s is not %s", word, got, want);
        qm_ids_free(&ids);
    }
}

static const char *const letters[] = {"a", "b", "c", "ab", "bc", "abc", "cc", "<unk>"};

TEST(tokenizer_merges_by_rank_then_from_the_left)
{
    qm_err e = {0};
    qm_merge merges[] = {{1, 2, 4}, {0, 1, 3}, {3, 2, 5}, {2, 2, 6}};
    qm_pieces p = pieces_of(letters, 8);
    qm_vocabulary_rules rules = {.kind = QM_BY_MERGES, .unknown = 7};
    qm_vocabulary *v = qm_vocabulary_new(&p, &rules, merges, 4, NULL, NULL, NULL, &e);
    CHECKF(v, "%s", e.msg);
    encodes(v, "abc", "0 4");  /* b c stands before a b */
    encodes(v, "abab", "3 3"); /* every pair of a rank, in order */
    encodes(v, "ccc", "6 2");  /* the leftmost of two that overlap */
    encodes(v, "cccc", "6 6");
    encodes(v, "axxb", "0 7 7 1"); /* every unknown character by itself */
    encodes(v, "x", "7");
    CHECK(qm_vocabulary_id(v, "abc", 3) == 5 && qm_vocabulary_id(v, "abx", 3) == NONE);
    qm_vocabulary_free(v);
}

TEST(tokenizer_words_bytes_prefix_and_suffix)
{
    qm_err e = {0};
    qm_pieces p = pieces_of(letters, 8);
    qm_vocabulary_rules rules = {
        .kind = QM_BY_MERGES, .unknown = 7, .whole_words = true, .fuse_unknown = true};
    qm_vocabulary *v = qm_vocabulary_new(&p, &rules, NULL, 0, NULL, NULL, NULL, &e);
    encodes(v, "abc", "5"); /* a word that is a piece */
    encodes(v, "abca", "0 1 2 0");
    encodes(v, "axxb", "0 7 1"); /* a run of unknown characters */
    qm_vocabulary_free(v);

    static const char *const inner[] = {"a", "##a", "##a</w>", "a</w>"};
    p = pieces_of(inner, 4);
    rules = (qm_vocabulary_rules){.kind = QM_BY_MERGES, .unknown = NONE, .prefix = "##", .suffix = "</w>"};
    v = qm_vocabulary_new(&p, &rules, NULL, 0, NULL, NULL, NULL, &e);
    encodes(v, "aaa", "0 1 2");
    encodes(v, "a", "3");
    encodes(v, "axa", "0 2"); /* there is no unknown piece: nothing is left of x */
    qm_vocabulary_free(v);

    p = pieces_of(letters, 8);
    rules = (qm_vocabulary_rules){.kind = QM_BY_MERGES, .unknown = 7, .byte_fallback = true};
    for (int i = 0; i < 256; i++)
        rules.byte_id[i] = i == 0xff ? NONE : 1000 + (uint32_t)i;
    v = qm_vocabulary_new(&p, &rules, NULL, 0, NULL, NULL, NULL, &e);
    encodes(v, "a\xc3\xa9", "0 1195 1169");
    qm_vocabulary_free(v);
}

TEST(tokenizer_scores_take_unused_pieces_apart)
{
    qm_err e = {0};
    uint32_t rank[] = {9, 9, 9, 1, 2, 1, 3, 9};
    bool unused[] = {false, false, false, true, false, false, false, false};
    qm_pieces p = pieces_of(letters, 8);
    qm_vocabulary_rules rules = {.kind = QM_BY_SCORES, .unknown = 7, .fuse_unknown = true};
    qm_vocabulary *v = qm_vocabulary_new(&p, &rules, NULL, 0, rank, NULL, unused, &e);
    CHECKF(v, "%s", e.msg);
    encodes(v, "abc", "5"); /* by way of ab */
    encodes(v, "ab", "0 1");
    encodes(v, "bcab", "4 0 1");
    encodes(v, "xyax", "7 0 7");
    qm_vocabulary_free(v);
    p = pieces_of(letters, 3);
    rules.unknown = NONE;
    v = qm_vocabulary_new(&p, &rules, NULL, 0, rank, NULL, NULL, &e);
    qm_ids ids = {0};
    CHECK(!qm_vocabulary_encode(v, "x", 1, &ids, &e) && e.code == QM_EUNSUPPORTED
          && strstr(e.msg, "no piece for 'x'"));
    qm_ids_free(&ids);
    qm_vocabulary_free(v);
}

TEST(tokenizer_unigram_takes_the_likeliest_cut)
{
    qm_err e = {0};
    double score[] = {-2, -2, -2, -3, -3.5, -4.5, -9, 0};
    qm_pieces p = pieces_of(letters, 8);
    qm_vocabulary_rules rules = {
        .kind = QM_UNIGRAM, .unknown = 7, .fuse_unknown = true, .unknown_score = -19};
    qm_vocabulary *v = qm_vocabulary_new(&p, &rules, NULL, 0, NULL, score, NULL, &e);
    CHECKF(v, "%s", e.msg);
    encodes(v, "abc", "5"); /* -4.5 against ab c -5 and a bc -5.5 */
    encodes(v, "abcc", "5 2");
    encodes(v, "cc", "2 2"); /* -4 against -9 */
    encodes(v, "xya", "7 0");
    qm_vocabulary_free(v);
}

/* A long word with no blank: n log n, or this test would not end. */
TEST(tokenizer_long_words_take_no_longer)
{
    enum { LENGTH = 400000 };
    qm_err e = {0};
    qm_merge merges[] = {{0, 0, 0}, {0, 1, 3}, {3, 3, 3}}; /* what they make goes on being merged */
    for (int kind = 0; kind < 2; kind++) {
        uint32_t rank[8] = {0};
        qm_pieces p = pieces_of(letters, 8);
        qm_vocabulary_rules rules = {.kind = kind ? QM_BY_SCORES : QM_BY_MERGES, .unknown = 7};
        qm_vocabulary *v = qm_vocabulary_new(&p, &rules, merges, 3, rank, NULL, NULL, &e);
        char *word = malloc(LENGTH);
        for (int i = 0; i < LENGTH; i++)
            word[i] = i % 2 ? 'b' : 'a';
        qm_ids ids = {0};
        CHECKF(qm_vocabulary_encode(v, word, LENGTH, &ids, &e), "%s", e.msg);
        CHECKF(ids.n == (kind ? LENGTH / 2 : 1), "%zu ids", ids.n);
        qm_ids_free(&ids);
        qm_vocabulary_free(v);
        free(word);
    }
}

/* ---- patterns --------------------------------------------------------------------------------- */

TEST(regex_finds_one_match_after_the_other)
{
    static const struct {
        const char *pattern, *subject,
            *want; /* Python: [m.span() for m in re.finditer(...)], less the rule below */
    } cases[] = {
        {"a+", "aabaa", "0-2 3-5 "},
        {"b*", "abb", "0-0 1-3 "}, /* Python has 3-3 too, Oniguruma has not */
        {"", "\xc3\xa9x", "0-0 2-2 3-3 "},
        {"x", "", ""},
        {"(?<=a)b", "abb", "1-2 "},
        {"$", "ab", "2-2 "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        qm_err e = {0};
        char got[64] = "";
        bool found;
        size_t from, to;
        qm_regex *r = qm_regex_new(cases[i].pattern, strlen(cases[i].pattern), &e);
        qm_regex_hasten(r);
        qm_regex_scan *s = qm_regex_scan_new(r, &e);
        qm_regex_start(s, cases[i].subject, strlen(cases[i].subject));
        while (qm_regex_next(s, &found, &from, &to, &e) && found)
            snprintf(got + strlen(got), sizeof got - strlen(got), "%zu-%zu ", from, to);
        CHECKF(strcmp(got, cases[i].want) == 0, "%s on %s: %s", cases[i].pattern, cases[i].subject, got);
        qm_regex_scan_free(s);
        qm_regex_free(r);
    }
}

static void cuts(const qm_split *steps, size_t n, const char *text, bool first, const char *want)
{
    qm_err e = {0};
    qm_words words;
    qm_bytes got = {0};
    qm_splitter *s = qm_splitter_new(steps, n, &e);
    CHECKF(s && qm_splitter_cut(s, text, strlen(text), first, &words, &e), "%s", e.msg);
    for (size_t i = 0; i < words.n; i++) {
        qm_bytes_add(&got, "|", i > 0);
        qm_bytes_add(&got, words.text.at + words.span[i].from, words.span[i].to - words.span[i].from);
    }
    text_is(&got, want);
    qm_bytes_free(&got);
    qm_words_free(&words);
    qm_splitter_free(s);
}

TEST(tokenizer_splits_by_every_behaviour)
{
    static const char *const want[][2] = {
        [QM_REMOVED] = {"the|final|countdown", "-|-|-"},
        [QM_ISOLATED] = {"the|-|final|-|-|countdown", "the|-|final|-|-|countdown"},
        [QM_CONTIGUOUS] = {"the|-|final|--|countdown", "the|-|final|--|countdown"},
        [QM_WITH_BEFORE] = {"the-|final-|-|countdown", "the|-final|-|-countdown"},
        [QM_WITH_AFTER] = {"the|-final|-|-countdown", "the-|final-|-|countdown"},
    };
    for (int b = QM_REMOVED; b <= QM_WITH_AFTER; b++)
        for (int invert = 0; invert < 2; invert++) {
            qm_split s = {
                .kind = QM_SPLIT_REGEX, .pattern = "-", .behaviour = (qm_split_behaviour)b, .invert = invert};
            cuts(&s, 1, "the-final--countdown", true, want[b][invert]);
        }
}

TEST(tokenizer_spells_bytes_and_blanks)
{
    qm_split bytes[] = {{.kind = QM_SPLIT_PREFIX}, {.kind = QM_SPLIT_BYTES}};
    cuts(bytes, 2, "a\n\xc3\xa9\x7f", true,
         "\xc4\xa0"
         "a\xc4\x8a\xc3\x83\xc2\xa9\xc4\xa1");
    qm_split blanks = {.kind = QM_SPLIT_SPACES, .blank = "_", .prepend = QM_PREPEND_FIRST, .cut = true};
    cuts(&blanks, 1, "a  b", true, "_a|_|_b");
    cuts(&blanks, 1, "a  b", false, "a|_|_b");
    cuts(&blanks, 1, " a", true, "_a");
    cuts(&blanks, 1, "", true, "");
    blanks.cut = false;
    cuts(&blanks, 1, "a b", true, "_a_b");
}

/* ---- added tokens --------------------------------------------------------------------------------- */

static void matches(const qm_matcher *m, const char *text, bool special, const char *want)
{
    char got[128] = "";
    size_t at = 0;
    qm_match match = {0};
    while (qm_matcher_next(m, text, strlen(text), special, match.to, &at, &match))
        snprintf(got + strlen(got), sizeof got - strlen(got), "%zu-%zu:%u ", match.from, match.to, match.id);
    CHECKF(strcmp(got, want) == 0, "%s: %s is not %s", text, got, want);
}

TEST(tokenizer_added_tokens)
{
    static const qm_added_token tokens[] = {
        {.text = "<a>", .n = 3, .id = 1, .lstrip = true},
        {.text = "<a>b", .n = 4, .id = 2},
        {.text = "<r>", .n = 3, .id = 3, .rstrip = true},
        {.text = "w", .n = 1, .id = 4, .single_word = true},
        {.text = "<s>", .n = 3, .id = 5, .special = true},
        {.text = "", .n = 0, .id = 6},
    };
    qm_err e = {0};
    qm_matcher *m = qm_matcher_new(tokens, 6, &e);
    CHECKF(m, "%s", e.msg);
    matches(m, "x<a>y<a>b", true, "1-4:1 5-9:2 ");   /* the longest */
    matches(m, "x \xe2\x80\x83<a>", true, "1-8:1 "); /* blanks before it, of Unicode too */
    matches(m, "<r> \t\n<a>", true, "0-6:3 6-9:1 ");
    matches(m, "w xw w\xcc\x81 w_ w", true, "0-1:4 12-13:4 ");
    matches(m, "<s><s", true, "0-3:5 ");
    matches(m, "<s>w", false, "3-4:4 ");
    matches(m, "", true, "");
    qm_matcher_free(m);
}

/* ---- Unicode ---------------------------------------------------------------------------------------- */

static void form_is(qm_unicode_form form, const char *text, const char *want)
{
    qm_err e = {0};
    qm_bytes got = {0};
    CHECKF(qm_unicode_form_of(form, text, strlen(text), &got, &e), "%s", e.msg);
    text_is(&got, want);
    qm_bytes_free(&got);
}

TEST(tokenizer_normal_forms)
{
    form_is(QM_NFC, "", "");
    form_is(QM_NFC, "plain", "plain");
    form_is(QM_NFC, "e\xcc\x81", "\xc3\xa9");
    form_is(QM_NFC, "xe\xcc\xa3\xcc\x81", "x\xe1\xba\xb9\xcc\x81");          /* below goes before above */
    form_is(QM_NFC, "e\xcc\x81\xcc\xa3", "\xe1\xba\xb9\xcc\x81");            /* in either order */
    form_is(QM_NFC, "\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", "\xed\x95\x9c"); /* a syllable of its jamo */
    form_is(QM_NFC, "\xe2\x84\xab", "\xc3\x85");                             /* the sign is the letter */
    form_is(QM_NFD, "\xc3\xa9\xed\x95\x9c", "e\xcc\x81\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab");
    form_is(QM_NFKC, "\xef\xac\x81\xef\xbc\xa1\xc2\xbd",
            "fiA1\xe2\x81\x84"
            "2");
    form_is(QM_NFKD, "\xc3\xa9\xe2\x91\xa0",
            "e\xcc\x81"
            "1");
    form_is(QM_LOWERCASE, "A\xc3\x89\xc4\xb0\xce\xa3", "a\xc3\xa9i\xcc\x87\xcf\x83");
    form_is(QM_WITHOUT_MARKS,
            "e\xcc\x81"
            "1\xef\xb8\x8f\xe2\x83\xa3",
            "e1");
}

/* Marks of falling classes: sorted by exchanges they would take n^2. */
TEST(tokenizer_many_marks_take_no_longer)
{
    enum { MARKS = 200000 };
    qm_err e = {0};
    char *text = malloc(2 * MARKS + 1);
    text[0] = 'e';
    for (int i = 0; i < MARKS; i++)
        memcpy(text + 1 + 2 * (size_t)i, i % 2 ? "\xcc\xa3" : "\xcc\x81", 2);
    qm_bytes got = {0};
    CHECK(qm_unicode_form_of(QM_NFC, text, 2 * MARKS + 1, &got, &e));
    CHECK(got.n == 3 + 2 * (MARKS - 1) && memcmp(got.at, "\xe1\xba\xb9\xcc\xa3", 5) == 0);
    CHECK(memcmp(got.at + got.n - 2, "\xcc\x81", 2) == 0);
    qm_bytes_free(&got);
    free(text);
}

TEST(tokenizer_repairs_what_is_not_utf8)
{
    static const char *const cases[][2] = {
        {"a\xff"
         "b",
         "a\xef\xbf\xbd"
         "b"},
        {"\xf0\x9f\x98x", "\xef\xbf\xbdx"},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xe2\x82", "\xef\xbf\xbd"},
        {"\xc3\xa9", "\xc3\xa9"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        qm_bytes got = {0};
        qm_unicode_repair(cases[i][0], strlen(cases[i][0]), &got);
        text_is(&got, cases[i][1]);
        qm_bytes_free(&got);
    }
}

TEST(tokenizer_sentences_are_squeezed_and_escaped)
{
    qm_err e = {0};
    qm_charsmap *m = qm_charsmap_new("", 0, &e);
    static const struct {
        qm_sentence_rules rules;
        const char *text, *want;
    } cases[] = {
        {{.prefix = true, .squeeze = true, .escape = false}, "  a  b ", " a b"},
        {{.prefix = true, .escape = true},
         " a",
         "\xe2\x96\x81\xe2\x96\x81"
         "a"},
        {{.prefix = true, .suffix = true}, "a b", "a b "},
        {{.squeeze = true}, "   ", ""},
        {{.prefix = true}, "", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        qm_bytes got = {0};
        qm_charsmap_sentence(m, &cases[i].rules, NULL, cases[i].text, strlen(cases[i].text), &got);
        text_is(&got, cases[i].want);
        qm_bytes_free(&got);
    }
    qm_charsmap_free(m);
}

/* A table may point anywhere: it must not be followed. */
TEST(tokenizer_hostile_charsmaps)
{
    uint8_t blob[4 + 1024 + 8] = {0};
    uint32_t size = 1024, seed = 1;
    for (int round = 0; round < 300; round++) {
        qm_err e = {0};
        memcpy(blob, &size, 4);
        for (size_t i = 4; i < sizeof blob; i++)
            blob[i] = (uint8_t)((seed = seed * 1664525 + 1013904223) >> 24);
        for (size_t i = 4; i < 1028; i += 4) { /* offsets near by, so that walks go on */
            blob[i] = (uint8_t)(i % 3 ? 'a' : blob[i]);
            blob[i + 2] &= 3;
            blob[i + 3] &= round % 2 ? 0x80 : 0;
        }
        qm_charsmap *m = qm_charsmap_new(blob, sizeof blob, &e);
        CHECKF(m, "%s", e.msg);
        qm_bytes got = {0};
        qm_sentence_rules rules = {.prefix = true};
        qm_charsmap_sentence(m, &rules, NULL, "aaaa \xc3\xa9 abc", 11, &got);
        qm_charsmap_graphemes(m, "aaaa \xc3\xa9 abc", 11, &got);
        CHECK(!got.failed);
        qm_bytes_free(&got);
        qm_charsmap_free(m);
    }
    qm_err e = {0};
    CHECK(!qm_charsmap_new("\xff\xff\xff\x7f"
                           "aaaa",
                           8, &e)
          && e.code == QM_ECORRUPT);
    e = (qm_err){0};
    CHECK(!qm_charsmap_new("ab", 2, &e) && e.code == QM_ECORRUPT);
}
