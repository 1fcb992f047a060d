/* pack.c: run by the build.  Reads the 2^23 measured deltas, one int8 each, from standard input and
 * writes them four to a byte, lowest bits first, to standard output; see core/rcp.h. */
#include <stdio.h>

enum { COUNT = 1 << 23 };

static int refuse(const char *why)
{
    fprintf(stderr, "pack: %s\n", why);
    return 1;
}

int main(void)
{
    for (int i = 0; i < COUNT; i += 4) {
        signed char d[4];
        unsigned byte = 0;
        if (fread(d, 1, 4, stdin) != 4)
            return refuse("the table ends early");
        for (int j = 0; j < 4; j++) {
            if (d[j] < -1 || d[j] > 1)
                return refuse("a delta is not -1, 0 or 1");
            byte |= ((unsigned)d[j] & 3) << (2 * j);
        }
        putchar((int)byte);
    }
    if (getchar() != EOF)
        return refuse("the table goes on after 2^23 deltas");
    return fflush(stdout) || ferror(stdout) ? refuse("cannot write") : 0;
}
