/* json_test.c: the strict door refuses by name what cJSON would let through, and nothing else. */
#include <stdlib.h>

#include "../../core/json.h"
#include "test.h"

#define LIMIT (64u << 20)

typedef cJSON *parser(const char *, size_t, size_t, const char *, qm_err *);

static void takes_n(const char *text, size_t n)
{
    qm_err e = {0};
    /* on the heap, without a NUL behind: the sanitiser sees one byte too many */
    char *copy = memcpy(malloc(n), text, n);
    cJSON *v = qm_json_parse(copy, n, LIMIT, "t.json", &e);
    CHECKF(v && !e.code, "%s: %s", text, e.msg);
    cJSON_Delete(v);
    free(copy);
}

static void refuses_n(parser *parse, const char *text, size_t n, const char *why)
{
    qm_err e = {0};
    char *copy = memcpy(malloc(n ? n : 1), text, n);
    cJSON *v = parse(copy, n, LIMIT, "t.json", &e);
    CHECKF(!v && e.code == QM_ECORRUPT, "taken: %s", text);
    CHECKF(strstr(e.msg, why) && strstr(e.msg, "t.json: "), "%s: '%s', not '%s'", text, e.msg, why);
    cJSON_Delete(v);
    free(copy);
}

static void takes(const char *text) { takes_n(text, strlen(text)); }
static void refuses(const char *text, const char *why) { refuses_n(qm_json_parse, text, strlen(text), why); }
static void refuses_size(const char *text, const char *why)
{
    refuses_n(qm_json_parse_sizes, text, strlen(text), why);
}

TEST(json_takes_what_rfc_8259_allows)
{
    static const char *const good[] = {
        "null",
        "true",
        "false",
        "0",
        "-0",
        "12",
        "-1.5e+10",
        "1E-7",
        "0.1",
        "\"\"",
        "[]",
        "{}",
        " \t\r\n[ ] \n",
        "[1,[2,{\"a\":{}}],null]",
        "{\"a\":1,\"A\":2,\"\":3}",
        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\"",
        "\"\\ud83d\\ude00\"",
        "\"\xf0\x9f\x98\x80 \xc3\xa9 \xe2\x82\xac \xf4\x8f\xbf\xbf\"",
        "\"\x7f\"",
        "1e-400",
        "9007199254740992",
        "-9007199254740992",
        "1000000000000000019884624838656",
        "9007199254740993.0",
        "[{\"a\":1},{\"a\":1}]",
        "{\"a\":{\"a\":{\"a\":1}}}",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        takes(good[i]);
}

TEST(json_refuses_what_is_no_json)
{
    static const char *const bad[][2] = {
        {"", "cut short"},
        {" ", "cut short"},
        {"[1", "cut short"},
        {"{\"a\"", "cut short"},
        {"\"a", "cut short"},
        {"{\"a\":", "cut short"},
        {"tru", "cut short"},
        {"-", "cut short"},
        {"1.", "cut short"},
        {"1e", "cut short"},
        {"[1,]", "no JSON value"},
        {"[,1]", "no JSON value"},
        {"{,}", "double quotes"},
        {"{\"a\":1,}", "double quotes"},
        {"{a:1}", "double quotes"},
        {"{'a':1}", "double quotes"},
        {"{\"a\" 1}", "colon"},
        {"[1 2]", "comma or ]"},
        {"{\"a\":1 \"b\":2}", "comma or }"},
        {"[1}", "comma or ]"},
        {"NaN", "no JSON value"},
        {"-Infinity", "digit"},
        {"nul1", "no JSON value"},
        {"01", "leading zero"},
        {"-01", "leading zero"},
        {"+1", "no JSON value"},
        {".5", "no JSON value"},
        {"1.e5", "digit"},
        {"1e+x", "digit"},
        {"0x10", "something follows"},
        {"1 2", "something follows"},
        {"{}x", "something follows"},
        {"// c\n1", "no JSON value"},
        {"\xef\xbb\xbf{}", "byte 0: no JSON value"},
        {"[\f1]", "no JSON value"},
        {"\"a\nb\"", "control character"},
        {"\"\t\"", "control character"},
        {"\"\\x41\"", "escape"},
        {"\"\\u12g4\"", "escape"},
        {"\"\\u12", "escape"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuses(bad[i][0], bad[i][1]);
}

TEST(json_refuses_bytes_that_are_no_utf8)
{
    static const char *const bad[] = {
        "\"\x80\"",
        "\"\xc3\"",
        "\"\xc3(\"",
        "\"\xc0\xaf\"",
        "\"\xc1\xbf\"",
        "\"\xe0\x9f\xbf\"",
        "\"\xf0\x8f\xbf\xbf\"",
        "\"\xed\xa0\x80\"",
        "\"\xed\xbf\xbf\"",
        "\"\xf4\x90\x80\x80\"",
        "\"\xf5\x80\x80\x80\"",
        "\"\xff\"",
        "\"\xe2\x82\"",
        "\"\xf0\x9f\x98\"",
        "\"\xf8\x88\x80\x80\x80\"",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuses(bad[i], "not UTF-8");
    refuses("\"\xe2\x82", "not UTF-8"); /* the text ends inside the character */
}

TEST(json_refuses_half_surrogate_pairs_and_nul)
{
    static const char *const half[] = {
        "\"\\ud800\"",        "\"\\udc00\"",        "\"\\ud83dx\"",   "\"\\ud83d\\n\"",
        "\"\\ud83d\\ud83d\"", "\"\\ude00\\ud83d\"", "\"\\ud83d\\u00",
    };
    for (size_t i = 0; i < sizeof half / sizeof *half; i++)
        refuses(half[i], "surrogate");
    refuses("\"a\\u0000b\"", "\\u0000");
    refuses("{\"a\\u0000b\":1}", "\\u0000");
    refuses_n(qm_json_parse, "{}\0", 3, "something follows"); /* NUL padding */
    refuses_n(qm_json_parse, "\"a\0b\"", 5, "control character");
}

TEST(json_refuses_the_same_key_twice_however_spelt)
{
    refuses("{\"a\":1,\"a\":1}", "key 'a' for the second time");
    refuses("{\"a\":1,\"b\":2,\"\\u0061\":3}", "second time");
    refuses("{\"\\u00e9\":1,\"\xc3\xa9\":2}", "second time");
    refuses("{\"\\u20ac\":1,\"\xe2\x82\xac\":2}", "second time");
    refuses("{\"\\ud83d\\ude00\":1,\"\xf0\x9f\x98\x80\":2}", "second time");
    refuses("{\"\\/\":1,\"/\":2}", "second time");
    refuses("{\"\":1,\"\":2}", "second time");
    refuses("[{\"a\":{\"b\":1},\"c\":{\"b\":1,\"b\":2}}]", "key 'b'");
    refuses("{\"a\":{\"x\":[{\"a\":1}]},\"a\":2}", "key 'a'");
    takes("{\"\\u00e9\":1,\"e\":2,\"\\\\u00e9\":3}");
}

TEST(json_refuses_numbers_that_would_be_rounded)
{
    refuses("9007199254740993", "beyond 2^53");
    refuses("-9007199254740993", "beyond 2^53");
    refuses("9007199254740994", "beyond 2^53");
    refuses("[18446744073709551616]", "byte 1: integer beyond 2^53");
    refuses("1000000000000000000000000000000", "beyond 2^53"); /* 10^30 is not int(1e30) */
    refuses("1e400", "too large");
    refuses("-1e400", "too large");
    refuses("0.1234567890123456789012345678901234567890123456789012345678901234", "63 characters");
}

TEST(json_sizes_are_whole_numbers)
{
    refuses_size("[-1]", "whole number");
    refuses_size("[-0]", "whole number");
    refuses_size("[1.0]", "whole number");
    refuses_size("[1e3]", "whole number");
    refuses_size("[9007199254740993]", "beyond 2^53");
    refuses_size("[1000000000000000019884624838656]", "beyond 2^53");
    qm_err e = {0};
    cJSON *v = qm_json_parse_sizes("[9007199254740992]", 18, LIMIT, "t", &e);
    CHECKF(v && v->child->valuedouble == 9007199254740992.0, "%s", e.msg);
    cJSON_Delete(v);
}

TEST(json_depth_values_and_length_are_bounded)
{
    char deep[2 * QM_JSON_DEPTH + 3];
    for (int n = QM_JSON_DEPTH; n <= QM_JSON_DEPTH + 1; n++) {
        memset(deep, '[', (size_t)n);
        memset(deep + n, ']', (size_t)n);
        deep[2 * n] = 0;
        n == QM_JSON_DEPTH ? takes(deep) : refuses(deep, "nested too deep");
    }
    qm_err e = {0};
    CHECK(!qm_json_parse("[1,2]", 5, 4, "big.json", &e) && strstr(e.msg, "big.json: 5 bytes"));

    size_t n = 100000; /* far beyond any stack, were it believed */
    char *bomb = malloc(n);
    memset(bomb, '[', n);
    refuses_n(qm_json_parse, bomb, n, "nested too deep");
    free(bomb);

    n = 2 * (size_t)QM_JSON_VALUES + 1; /* [0,0,…]: would take 40 times its length in memory */
    char *flat = malloc(n);
    for (size_t i = 0; i < n; i++)
        flat[i] = i % 2 ? '0' : ',';
    flat[0] = '[';
    flat[n - 1] = ']';
    e = (qm_err){0};
    CHECK(!qm_json_parse(flat, n, LIMIT, "flat", &e) && strstr(e.msg, "too many values"));
    free(flat);
}

TEST(json_values_arrive_as_they_were)
{
    const char *text = "{\"a\":[1,-2.5],\"\\ud83d\\ude00\":\"x\\ny\",\"t\":true}";
    qm_err e = {0};
    cJSON *v = qm_json_parse(text, strlen(text), LIMIT, "t", &e);
    CHECKF(v, "%s", e.msg);
    cJSON *a = cJSON_GetObjectItemCaseSensitive(v, "a"),
          *s = cJSON_GetObjectItemCaseSensitive(v, "\xf0\x9f\x98\x80");
    CHECK(a && a->child->valuedouble == 1 && a->child->next->valuedouble == -2.5);
    CHECK(s && strcmp(s->valuestring, "x\ny") == 0);
    cJSON_Delete(v);
}

/* A vocabulary of 300 000 keys: a quadratic search would take minutes. */
TEST(json_many_keys)
{
    size_t count = 300000, used = 0;
    char *text = malloc(count * 24 + 32);
    for (size_t i = 0; i < count; i++)
        used += (size_t)sprintf(text + used, "%c\"tok%zu\":%zu", i ? ',' : '{', i * 7919 % count, i);
    text[used] = '}';
    qm_err e = {0};
    cJSON *v = qm_json_parse(text, used + 1, LIMIT, "vocab", &e);
    CHECKF(v && !e.code, "%s", e.msg);
    cJSON_Delete(v);
    used += (size_t)sprintf(text + used, ",\"tok\\u0034\":1}");
    CHECK(!qm_json_parse(text, used, LIMIT, "vocab", &e) && strstr(e.msg, "key 'tok\\u0034'"));
    free(text);
}

/* No mutation of a valid text may crash, or be taken and then not be what cJSON prints and reads again. */
TEST(json_mutations)
{
    static const char seed[] = "{\"a\":[1,-2.5e3,true,null,\"x\\u00e9\\ud83d\\ude00\"],\"b\xc3\xa9\":{\"c\":{"
                               "}},\"n\":9007199254740991}";
    static const char alphabet[] = "{}[]\",:\\u0019eE+-. \xc3\xa9\xed\xf4\x80tn";
    uint64_t rng = 0x9e3779b97f4a7c15u;
    int taken = 0;
    for (int round = 0; round < 20000; round++) {
        size_t n = sizeof seed - 1;
        char *text = memcpy(malloc(n), seed, n);
        for (int flips = 1 + round % 3; flips > 0; flips--) {
            rng ^= rng << 13, rng ^= rng >> 7, rng ^= rng << 17;
            text[rng % n] = alphabet[(rng >> 32) % (sizeof alphabet - 1)];
        }
        if (round % 5 == 0)
            n = rng % n;
        qm_err e = {0};
        cJSON *v = qm_json_parse(text, n, LIMIT, "m", &e);
        CHECK(!v == (e.code != QM_OK));
        if (v) {
            taken++;
            char *again = cJSON_PrintUnformatted(v);
            cJSON *w = qm_json_parse(again, strlen(again), LIMIT, "again", &e);
            CHECKF(w && cJSON_Compare(v, w, true), "%.*s: %s", (int)n, text, e.msg);
            cJSON_Delete(w);
            free(again);
        }
        cJSON_Delete(v);
        free(text);
    }
    CHECKF(taken > 100 && taken < 15000, "%d", taken);
}
