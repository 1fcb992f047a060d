/* unit.c: runs every TEST in this folder; arguments choose some by substring of their name. */
#include <stdlib.h>
#include <unistd.h>

#include "test.h"

qm_test *qm_tests;
int qm_test_failures;
const char *qm_test_dir = "tests/fixtures";

static char scratch[64];

const char *qm_test_tmp(const char *name)
{
    static char path[4][256];
    static int turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", scratch, name);
    return p;
}

const char *qm_test_write(const char *name, const void *bytes, size_t n)
{
    const char *path = qm_test_tmp(name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) {
        perror(path);
        qm_test_failures++;
    }
    return path;
}

static bool chosen(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strstr(name, argv[i]))
            return true;
    return argc < 2;
}

int main(int argc, char **argv)
{
    int passed = 0, failed = 0;
    snprintf(scratch, sizeof scratch, "/tmp/qmoon-unit-XXXXXX");
    if (!mkdtemp(scratch)) {
        perror(scratch);
        return 1;
    }
    for (qm_test *t = qm_tests; t; t = t->next) {
        if (!chosen(t->name, argc, argv))
            continue;
        qm_test_failures = 0;
        t->run();
        if (qm_test_failures) {
            printf("FAIL %s\n", t->name);
            failed++;
        } else {
            passed++;
        }
    }
    char clean[128];
    snprintf(clean, sizeof clean, "rm -rf '%s'", scratch);
    if (system(clean))
        perror(clean);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
