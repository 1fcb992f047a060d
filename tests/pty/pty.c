/* pty.c: drives a program on a terminal of its own, key by key, and says what is on the screen.
 *
 *     pty COLUMNS ROWS PROGRAM ARGUMENTS… < steps
 *
 * Steps, one a line; \r \n \t \e \xNN and \\ mean what they do in C:
 *
 * - type TEXT: sends it
 *
 * - wait TEXT: until the screen shows it; fails after half a minute
 *
 * - answer: until a line is read again (the program asks the terminal to mark what is pasted)
 *
 * - quiet: until nothing has come for 150 ms
 *
 * - screen: prints the screen, without blank lines at its end, and a line "--"
 *
 * - raw: prints all that has come since the last `raw`, escapes shown as \e
 *
 * - resize C R: the terminal gets another size
 *
 * - signal N: sends a signal to the program
 *
 * - end: waits until the program ends, and prints "status N"
 *
 * The screen understands what libedit and we send: line ends, tabs, backspaces, CSI A B C D G H J K P @ X.
 */
#define _GNU_SOURCE /* posix_openpt and its kin */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 400, PATIENCE = 30000, QUIET = 150, SETTLED = 20 };

/* ---- the screen ------------------------------------------------------------------------------------ */

typedef struct cell {
    char bytes[5]; /* one UTF-8 character; "" is a blank */
} cell;

static cell screen[MOST][MOST];
static int columns, rows, row, column;
static bool wrapped; /* the last column was written: the next character goes to the next line */

static void scroll(void)
{
    memmove(screen[0], screen[1], (size_t)(rows - 1) * sizeof screen[0]);
    memset(screen[rows - 1], 0, sizeof screen[0]);
}

static void down(void)
{
    if (row + 1 < rows)
        row++;
    else
        scroll();
}

static void put_character(const char *bytes)
{
    if (wrapped) {
        column = 0;
        down();
    }
    strcpy(screen[row][column].bytes, bytes);
    wrapped = column + 1 == columns;
    column += !wrapped;
}

static void blank(int r, int from, int to)
{
    for (int c = from; c < to; c++)
        screen[r][c] = (cell){{0}};
}

static int limit(int v, int most) { return v < 0 ? 0 : v > most ? most : v; }

static void shift(int by) /* cells from the cursor on, to the right or (by < 0) to the left */
{
    int n = columns - column - abs(by);
    if (n < 0)
        n = 0;
    cell *at = &screen[row][column];
    if (by > 0)
        memmove(at + by, at, (size_t)n * sizeof *at);
    else
        memmove(at, at - by, (size_t)n * sizeof *at);
    if (by > 0)
        blank(row, column, limit(column + by, columns));
    else
        blank(row, column + n, columns);
}

static void control(char final, const int *v, int n)
{
    int one = n > 0 && v[0] > 0 ? v[0] : 1, kind = n > 0 ? v[0] : 0;
    wrapped = false;
    switch (final) {
    case 'A':
        row = limit(row - one, rows - 1);
        break;
    case 'B':
        row = limit(row + one, rows - 1);
        break;
    case 'C':
        column = limit(column + one, columns - 1);
        break;
    case 'D':
        column = limit(column - one, columns - 1);
        break;
    case 'G':
        column = limit(one - 1, columns - 1);
        break;
    case 'H':
        row = limit(one - 1, rows - 1);
        column = limit(n > 1 && v[1] > 0 ? v[1] - 1 : 0, columns - 1);
        break;
    case 'J':
        blank(row, kind == 2 ? 0 : column, columns);
        for (int r = kind == 2 ? 0 : row + 1; r < rows; r++)
            blank(r, 0, columns);
        break;
    case 'K':
        blank(row, kind == 0 ? column : 0, kind == 1 ? column + 1 : columns);
        break;
    case 'P':
        shift(-one);
        break;
    case '@':
        shift(one);
        break;
    case 'X':
        blank(row, column, limit(column + one, columns));
        break;
    default:
        break; /* colours, modes */
    }
}

/* Takes one byte after the other. */
static void show(unsigned char c)
{
    static enum { TEXT, ESCAPE, CSI } state;
    static int value[8], count, need;
    static char character[5];
    if (state == ESCAPE) {
        state = c == '[' ? CSI : TEXT;
        count = 0;
        memset(value, 0, sizeof value);
    } else if (state == CSI) {
        if (c >= '0' && c <= '9') {
            count = count ? count : 1;
            value[count - 1] = value[count - 1] * 10 + c - '0';
        } else if (c == ';' && count < 7) {
            count = (count ? count : 1) + 1;
        } else if (c >= 0x40) {
            control((char)c, value, count);
            state = TEXT;
        }
    } else if (c == 27) {
        state = ESCAPE;
    } else if (c == '\r') {
        column = 0;
        wrapped = false;
    } else if (c == '\n') {
        wrapped = false;
        down();
    } else if (c == '\b') {
        column -= column > 0;
        wrapped = false;
    } else if (c == '\t') {
        column = limit((column / 8 + 1) * 8, columns - 1);
    } else if (c >= 0xc0) {
        need = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
        character[0] = (char)c;
        character[1] = 0;
    } else if (c >= 0x80) {
        size_t n = strlen(character);
        if (need > 0 && n < 4) {
            character[n] = (char)c;
            character[n + 1] = 0;
            if (--need == 0)
                put_character(character);
        }
    } else if (c >= 32 && c != 127) {
        put_character((char[]){(char)c, 0});
    }
}

static void line_text(int r, char *out)
{
    int last = columns;
    while (last > 0 && (screen[r][last - 1].bytes[0] == 0 || screen[r][last - 1].bytes[0] == ' '))
        last--;
    *out = 0;
    for (int c = 0; c < last; c++)
        strcat(out, screen[r][c].bytes[0] ? screen[r][c].bytes : " ");
}

/* ---- the program ----------------------------------------------------------------------------- */

static int terminal;
static pid_t program;
static char *raw;
static size_t raw_size, sent_at; /* sent_at: how much had come when something was last sent */

static void die(const char *format, ...)
{
    char text[MOST * 5];
    va_list ap;
    va_start(ap, format);
    vprintf(format, ap);
    va_end(ap);
    printf("\nthe screen:\n");
    for (int r = 0; r <= row; r++) {
        line_text(r, text);
        printf("%s\n", text);
    }
    kill(program, SIGKILL);
    exit(1);
}

static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Takes in what comes within `patience` milliseconds; false when nothing did, or the program has ended. */
static bool take(int patience)
{
    struct pollfd p = {terminal, POLLIN, 0};
    unsigned char bytes[4096];
    if (poll(&p, 1, patience) <= 0)
        return false;
    ssize_t n = read(terminal, bytes, sizeof bytes);
    if (n <= 0)
        return false;
    char *more = realloc(raw, raw_size + (size_t)n + 1);
    if (!more)
        die("out of memory");
    raw = more;
    memcpy(raw + raw_size, bytes, (size_t)n);
    raw_size += (size_t)n;
    for (ssize_t i = 0; i < n; i++)
        show(bytes[i]);
    return true;
}

static void start(char **argv)
{
    terminal = posix_openpt(O_RDWR | O_NOCTTY);
    if (terminal < 0 || grantpt(terminal) || unlockpt(terminal))
        die("no terminal: %s", strerror(errno));
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    ioctl(terminal, TIOCSWINSZ, &size);
    program = fork();
    if (program != 0)
        return;
    setsid();
    int fd = open(ptsname(terminal), O_RDWR);
    ioctl(fd, TIOCSCTTY, 0);
    dup2(fd, 0);
    dup2(fd, 1);
    dup2(fd, 2);
    close(fd);
    close(terminal);
    execvp(argv[0], argv);
    _exit(127);
}

/* ---- steps
 * ------------------------------------------------------------------------------------------------- */

static size_t unescape(char *s)
{
    char *out = s, *from = s;
    while (*from) {
        if (*from != '\\') {
            *out++ = *from++;
            continue;
        }
        char c = from[1];
        unsigned value = 0;
        if (c == 'x' && sscanf(from + 2, "%2x", &value) == 1) {
            *out++ = (char)value;
            from += 4;
            continue;
        }
        *out++ = (char)(c == 'r' ? '\r' : c == 'n' ? '\n' : c == 't' ? '\t' : c == 'e' ? 27 : c);
        from += c ? 2 : 1;
    }
    *out = 0;
    return (size_t)(out - s);
}

static void send_text(char *text)
{
    size_t n = unescape(text);
    sent_at = raw_size;
    for (size_t i = 0; i < n; i++) { /* key by key */
        if (write(terminal, text + i, 1) != 1)
            die("the program does not read");
        if (i % 64 == 63)
            take(0);
    }
}

/* Whether the screen shows the text anywhere. */
static bool shows(const char *text)
{
    static char all[MOST * MOST * 5];
    char line[MOST * 5];
    all[0] = 0;
    for (int r = 0; r < rows; r++) {
        line_text(r, line);
        strcat(all, line);
        strcat(all, "\n");
    }
    return strstr(all, text) != NULL;
}

static void wait_for(char *text)
{
    unescape(text);
    long end = now() + PATIENCE;
    while (!shows(text)) {
        if (now() > end)
            die("'%s' did not come", text);
        take(50);
    }
}

static void be_quiet(int patience)
{
    while (take(patience)) {
    }
}

static void wait_for_answer(void)
{
    static const char mark[] = "\033[?2004h";
    long end = now() + PATIENCE;
    while (raw_size <= sent_at || !memmem(raw + sent_at, raw_size - sent_at, mark, sizeof mark - 1)) {
        if (now() > end)
            die("no answer came");
        take(50);
    }
    be_quiet(SETTLED);
}

static void print_screen(void)
{
    char line[MOST * 5];
    int last = rows;
    while (last > 0 && (line_text(last - 1, line), line[0] == 0))
        last--;
    for (int r = 0; r < last; r++) {
        line_text(r, line);
        printf("%s\n", line);
    }
    printf("--\n");
}

static void print_raw(void)
{
    for (size_t i = 0; i < raw_size; i++)
        if (raw[i] == 27)
            printf("\\e");
        else if (raw[i] == '\r')
            printf("\\r");
        else
            putchar(raw[i]);
    printf("\n--\n");
    raw_size = sent_at = 0;
}

static void print_end(void)
{
    int status = 0;
    long end = now() + PATIENCE;
    while (waitpid(program, &status, WNOHANG) == 0) {
        if (now() > end)
            die("the program does not end");
        take(20);
    }
    while (take(20)) {
    }
    printf("status %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static void step(char *line)
{
    char *word = line, *text = strchr(line, ' ');
    if (text)
        *text++ = 0;
    else
        text = line + strlen(line);
    if (strcmp(word, "type") == 0) {
        send_text(text);
    } else if (strcmp(word, "wait") == 0) {
        wait_for(text);
    } else if (strcmp(word, "quiet") == 0) {
        be_quiet(QUIET);
    } else if (strcmp(word, "answer") == 0) {
        wait_for_answer();
    } else if (strcmp(word, "screen") == 0) {
        print_screen();
    } else if (strcmp(word, "raw") == 0) {
        print_raw();
    } else if (strcmp(word, "signal") == 0) {
        kill(program, atoi(text));
    } else if (strcmp(word, "end") == 0) {
        print_end();
    } else if (strcmp(word, "resize") == 0) {
        struct winsize size = {0};
        sscanf(text, "%hu %hu", &size.ws_col, &size.ws_row);
        columns = size.ws_col;
        rows = size.ws_row;
        ioctl(terminal, TIOCSWINSZ, &size);
    } else if (*word) {
        die("no step '%s'", word);
    }
}

int main(int argc, char **argv)
{
    static char line[1 << 16];
    if (argc < 4) {
        fprintf(stderr, "usage: pty COLUMNS ROWS PROGRAM ARGUMENTS... < steps\n");
        return 2;
    }
    columns = limit(atoi(argv[1]), MOST - 1);
    rows = limit(atoi(argv[2]), MOST - 1);
    start(argv + 3);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        step(line);
    }
    kill(program, SIGKILL);
    return 0;
}
