/* regex_test.c: patterns as adapters have them, against what Python 3.11's `re` answers. */
#include "../../core/regex.h"
#include "test.h"

static void expect(const char *pattern, const char *subject, bool match, bool full, bool search)
{
    qm_err e = {0};
    bool got[3] = {false};
    qm_regex *r = qm_regex_new(pattern, strlen(pattern), &e);
    CHECKF(r, "%s", e.msg);
    for (int mode = 0; r && mode < 3; mode++)
        CHECKF(qm_regex_test(r, (qm_regex_mode)mode, subject, strlen(subject), &got[mode], &e), "%s", e.msg);
    CHECKF(got[0] == match && got[1] == full && got[2] == search, "%s on %s: %d %d %d", pattern, subject,
           got[0], got[1], got[2]);
    qm_regex_free(r);
}

TEST(regex_modes_are_pythons)
{
    expect("b", "abc", false, false, true);
    expect("a", "abc", true, false, true);
    expect("abc", "abc", true, true, true);
    expect("a|abc", "abc", true, true, true); /* fullmatch tries the second way too */
    expect("c$", "abc", false, false, true);
    expect("abc$", "abc\n", true, false, true);
    expect("", "abc", true, false, true);
    expect("", "", true, true, true);
    expect("x", "", false, false, false);
    expect("a.c", "a\nc", false, false, false);
    expect("(?P<l>\\d+)\\.(?P=l)", "7.7", true, true, true);
}

TEST(regex_patterns_of_adapters)
{
    const char *name = "model.layers.10.self_attn.q_proj";
    expect(".*\\.(q_proj|v_proj)", name, true, true, true);
    expect("(.*\\.)?(q_proj)$", name, true, true, true);
    expect("(.*\\.)?(proj)$", name, false, false, true);
    expect("model\\.layers\\.([0-9]|1[0-2])\\..*_proj", name, true, true, true);
    expect(".*\\.[^.]*\\.(\\d+)\\.", name, true, false, true);
    expect("^(?!.*down_proj).*proj$", "model.down_proj", false, false, false);
}

TEST(regex_knows_unicode)
{
    expect("\\w+", "\xc3\xa9\xc3\xa9", true, true, true);
    expect(".", "\xf0\x9f\x98\x80", true, true, true);
    expect("\\p{L}+",
           "Stra\xc3\x9f"
           "e",
           true, true, true);
    expect("\\s", "\xc2\xa0", true, true, true);
    expect("\\bx", "\xc3\xa9x", false, false, false);
}

TEST(regex_failures_say_where)
{
    static const char *const bad[][2] = {{"a(b", "character 3"}, {"a**", "character"},
                                         {"[z-a]", "range"},     {"\\C", "\\C"},
                                         {"\xff", "UTF-8"},      {"(?<=a+)b", "lookbehind"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        qm_err e = {0};
        qm_regex *r = qm_regex_new(bad[i][0], strlen(bad[i][0]), &e);
        CHECKF(!r && e.code == QM_EFAIL && strstr(e.msg, bad[i][1]), "%s: %s", bad[i][0], e.msg);
        qm_regex_free(r);
    }
    qm_err e = {0};
    bool yes = false;
    qm_regex *r = qm_regex_new("a", 1, &e);
    CHECK(!qm_regex_test(r, QM_REGEX_SEARCH, "\xff", 1, &yes, &e) && strstr(e.msg, "UTF-8"));
    qm_regex_free(r);

    /* exponentially many ways: an error, not an afternoon */
    e = (qm_err){0};
    char subject[64];
    memset(subject, 'a', sizeof subject);
    r = qm_regex_new("(a|aa)+$", 8, &e);
    subject[sizeof subject - 1] = 'b';
    CHECK(!qm_regex_test(r, QM_REGEX_MATCH, subject, sizeof subject, &yes, &e) && strstr(e.msg, "limit"));
    qm_regex_free(r);
}
