/* test.h: a test is TEST(name) { CHECK(...); }, found by itself; unit.c runs them all. */
#ifndef QM_TEST_H
#define QM_TEST_H

#include <stdio.h>
#include <string.h>

#include "../../core/qm.h"

typedef struct qm_test {
    const char *name;
    void (*run)(void);
    struct qm_test *next;
} qm_test;

extern qm_test *qm_tests;
extern int qm_test_failures;    /* of the running test */
extern const char *qm_test_dir; /* tests/fixtures */

/* Path of a scratch file for this process; overwritten by the next call with the same name. */
const char *qm_test_tmp(const char *name);
/* The same, holding these bytes. */
const char *qm_test_write(const char *name, const void *bytes, size_t n);

#define TEST(id)                                                 \
    static void test_##id(void);                                 \
    __attribute__((constructor)) static void register_##id(void) \
    {                                                            \
        static qm_test t = {#id, test_##id, NULL};               \
        t.next = qm_tests;                                       \
        qm_tests = &t;                                           \
    }                                                            \
    static void test_##id(void)

#define CHECK(cond) \
    ((cond) ? (void)0 : (void)(qm_test_failures++, printf("  %s:%d: %s\n", __FILE__, __LINE__, #cond)))

/* As CHECK, saying what else is known. */
#define CHECKF(cond, ...)                                                                    \
    ((cond) ? (void)0                                                                        \
            : (void)(qm_test_failures++, printf("  %s:%d: %s: ", __FILE__, __LINE__, #cond), \
                     printf(__VA_ARGS__), printf("\n")))

#endif
