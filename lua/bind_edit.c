/* bind_edit.c: a line of a terminal, edited; or a pasted block, as one.  libedit does the editing.
 *
 * While a line is being edited the terminal is raw.  It is put back when the line is done, when the process
 * is stopped or ended by a signal, and by nothing else: code runs with the terminal as it was.
 *
 * A terminal marks what is pasted (ESC [200~ … ESC [201~) once it is asked to.  Such text goes into the line
 * with its line ends, so that a block is one chunk; if it ends with a line end, it is entered at once, as
 * typing it would.
 */
#include <errno.h>
#include <fcntl.h>
#include <histedit.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

#include "../core/utf8.h"
#include "bind.h"

#define EDITOR "qmoon.editor"

enum { HISTORY = 5000, MOST_PASTED = 1 << 20 };

typedef struct editor {
    EditLine *el;
    History *history;
    lua_State *L;
    int complete;     /* registry reference of the completion function */
    char prompt[128]; /* of the line being read */
    bool interrupted, ended;
} editor;

/* What the signal handlers need: the terminal to restore, while a line is being edited. */
static struct termios cooked;
static volatile sig_atomic_t editing, resized, resumed;

#define PASTE_ON  "\033[?2004h"
#define PASTE_OFF "\033[?2004l"

static void put(const char *text)
{
    ssize_t n = write(STDOUT_FILENO, text, strlen(text));
    (void)n; /* a terminal that is gone is noticed when it is read */
}

/* ---- signals ------------------------------------------------------------------------------------- */

static void restore(void)
{
    if (!editing)
        return;
    tcsetattr(STDIN_FILENO, TCSADRAIN, &cooked);
    put(PASTE_OFF);
}

static void on_resize(int sig)
{
    (void)sig;
    resized = 1;
}

/* Ctrl-Z: the shell gets its terminal back; read_key sets it up again afterwards. */
static void on_stop(int sig)
{
    int saved = errno;
    restore();
    struct sigaction standard = {.sa_handler = SIG_DFL}, ours;
    sigaction(sig, &standard, &ours);
    sigset_t one, before;
    sigemptyset(&one);
    sigaddset(&one, sig);
    raise(sig);
    sigprocmask(SIG_UNBLOCK, &one, &before); /* stops here */
    sigprocmask(SIG_SETMASK, &before, NULL);
    sigaction(sig, &ours, NULL);
    resumed = 1;
    errno = saved;
}

static void on_death(int sig)
{
    restore();
    signal(sig, SIG_DFL);
    raise(sig);
}

static void (*other_end)(int); /* main.c's handler of SIGTERM: it stops work that is under way */

static void on_end(int sig)
{
    if (!editing && other_end) {
        other_end(sig);
        return;
    }
    restore();
    _exit(128 + sig);
}

static void catch_signals(void)
{
    struct sigaction resize = {.sa_handler = on_resize}, stop = {.sa_handler = on_stop};
    struct sigaction death = {.sa_handler = on_death}, end = {.sa_handler = on_end}, before;
    if (sigaction(SIGTERM, &end, &before) == 0 && before.sa_handler != on_end)
        other_end = before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN ? before.sa_handler : NULL;
    sigaction(SIGWINCH, &resize, NULL);
    sigaction(SIGTSTP, &stop, NULL);
    static const int deadly[] = {SIGHUP,  SIGQUIT, SIGABRT,
#ifndef __SANITIZE_ADDRESS__ /* whose own report is better */
                                 SIGSEGV, SIGBUS,  SIGFPE,
                                 SIGILL
#endif
    };
    for (size_t i = 0; i < sizeof deadly / sizeof deadly[0]; i++)
        sigaction(deadly[i], &death, NULL);
}

/* ---- keys ------------------------------------------------------------------------------------------ */

static editor *of(EditLine *el)
{
    editor *ed = NULL;
    el_get(el, EL_CLIENTDATA, &ed);
    return ed;
}

/* The next byte of the terminal; -1 at its end, -2 when the user asked to stop. */
static int read_byte(EditLine *el)
{
    for (;;) {
        unsigned char c;
        ssize_t n = read(STDIN_FILENO, &c, 1);
        if (n == 1)
            return c;
        if (n == 0 || errno != EINTR)
            return -1;
        if (qm_interrupted())
            return -2;
        if (resized)
            el_resize(el);
        if (resumed) {
            el_set(el, EL_PREP_TERM, 1);
            put(PASTE_ON);
        }
        if (resized || resumed)
            el_set(el, EL_REFRESH);
        resized = resumed = 0;
    }
}

static wchar_t decode(const uint8_t *p, size_t n)
{
    static const uint8_t first[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    wchar_t c = p[0] & first[n];
    for (size_t i = 1; i < n; i++)
        c = (wchar_t)(c << 6 | (p[i] & 0x3f));
    return c;
}

/* libedit's source of characters.  Bytes that are no UTF-8 are left out. */
static int read_key(EditLine *el, wchar_t *key)
{
    uint8_t seq[4];
    size_t n = 0;
    for (;;) {
        int c = read_byte(el);
        if (c == -1)
            return 0;
        if (c == -2) {
            *key = 3; /* Ctrl-C, which is bound to key_interrupt */
            return 1;
        }
        if (n > 0 && (c & 0xc0) != 0x80)
            n = 0;
        seq[n++] = (uint8_t)c;
        size_t want = seq[0] < 0x80 ? 1 : seq[0] < 0xe0 ? 2 : seq[0] < 0xf0 ? 3 : 4;
        if (n < want)
            continue;
        if (qm_utf8_step(seq, n) == n) {
            *key = decode(seq, n);
            return 1;
        }
        n = 0;
    }
}

static unsigned char key_interrupt(EditLine *el, int key)
{
    (void)key;
    editor *ed = of(el);
    lua_sethook(ed->L, NULL, 0, 0); /* main.c's, which would stop the next instruction: this is the answer */
    qm_interrupt_clear();
    ed->interrupted = true;
    return CC_NEWLINE;
}

/* Ctrl-D: the end on an empty line, otherwise what Delete does. */
static unsigned char key_end(EditLine *el, int key)
{
    (void)key;
    const LineInfo *line = el_line(el);
    if (line->lastchar == line->buffer) {
        of(el)->ended = true;
        return CC_EOF;
    }
    if (line->cursor == line->lastchar)
        return CC_ERROR;
    el_cursor(el, 1);
    el_deletestr(el, 1);
    return CC_REFRESH;
}

typedef struct pasted {
    wchar_t *text;
    size_t n, room;
} pasted;

/* Control characters are left out, but line ends and tabs; false when memory is out or it is too much. */
static bool keep(pasted *p, wchar_t c)
{
    if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f)
        return true;
    if (p->n + 1 >= p->room) {
        size_t room = p->room ? 2 * p->room : 1024;
        wchar_t *more = room <= MOST_PASTED ? realloc(p->text, room * sizeof *more) : NULL;
        if (!more)
            return false;
        p->text = more;
        p->room = room;
    }
    p->text[p->n++] = c;
    p->text[p->n] = 0;
    return true;
}

/* Reads what the terminal sends up to ESC [201~. */
static void read_pasted(EditLine *el, pasted *p)
{
    static const wchar_t end[] = {27, '[', '2', '0', '1', '~'};
    enum { END = sizeof end / sizeof end[0] };
    size_t matched = 0;
    wchar_t c, before = 0;
    bool ok = true;
    while (ok && matched < END && el_wgetc(el, &c) == 1) {
        if (c == end[matched]) {
            matched++;
            continue;
        }
        for (size_t i = 1; ok && i < matched; i++)
            ok = keep(p, end[i]);
        matched = c == end[0];
        if (!matched && !(c == '\n' && before == '\r')) /* a terminal sends \r for a line end, or \r\n */
            ok = ok && keep(p, c == '\r' ? '\n' : c);
        before = c;
    }
}

static unsigned char key_paste(EditLine *el, int key)
{
    (void)key;
    pasted p = {0};
    read_pasted(el, &p);
    bool enter = p.n > 0 && p.text[p.n - 1] == '\n';
    while (p.n > 0 && p.text[p.n - 1] == '\n')
        p.text[--p.n] = 0;
    int failed = p.n > 0 && el_winsertstr(el, p.text) == -1;
    free(p.text);
    if (failed)
        return CC_ERROR;
    if (enter)
        el_push(el, "\n");
    return CC_REFRESH;
}

/* ---- completion ------------------------------------------------------------------------------------- */

/* Calls complete(text before the cursor) -> text to insert, text to show below, characters to take away
 * first; shielded, as an error must not jump through libedit. */
static bool ask(editor *ed, const LineInfo *line)
{
    lua_State *L = ed->L;
    lua_rawgeti(L, LUA_REGISTRYINDEX, ed->complete);
    lua_pushlstring(L, line->buffer, (size_t)(line->cursor - line->buffer));
    return lua_pcall(L, 1, 3, 0) == 0;
}

static unsigned char key_complete(EditLine *el, int key)
{
    (void)key;
    editor *ed = of(el);
    lua_State *L = ed->L;
    int top = lua_gettop(L);
    unsigned char next = CC_ERROR;
    if (ed->complete != LUA_NOREF && lua_checkstack(L, 4) && ask(ed, el_line(el))) {
        const char *insert = lua_tostring(L, -3), *show = lua_tostring(L, -2);
        if (lua_tointeger(L, -1) > 0)
            el_deletestr(el, (int)lua_tointeger(L, -1));
        if (insert && *insert && el_insertstr(el, insert) == 0)
            next = CC_REFRESH;
        if (show && *show) {
            put("\r\n");
            put(show);
            put("\r\n");
            next = CC_REDISPLAY;
        }
    }
    lua_settop(L, top);
    return next;
}

/* ---- the editor -------------------------------------------------------------------------------------- */

static char *prompt_of(EditLine *el) { return of(el)->prompt; }

static int editor_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, EDITOR);
    editor *ed = *box;
    *box = NULL;
    if (!ed)
        return 0;
    if (ed->history)
        history_end(ed->history);
    if (ed->el)
        el_end(ed->el);
    luaL_unref(L, LUA_REGISTRYINDEX, ed->complete);
    free(ed);
    return 0;
}

/* Wide: libedit keeps these names, and would keep copies of narrow ones for ever. */
static const struct {
    const wchar_t *name, *help;
    unsigned char (*run)(EditLine *, int);
    const wchar_t *key;
} keys[] = {
    {L"qmoon-interrupt", L"abandons the line", key_interrupt, L"^C"},
    {L"qmoon-end", L"deletes a character, or ends the session", key_end, L"^D"},
    {L"qmoon-paste", L"takes pasted text as it is", key_paste, L"\\e[200~"},
    {L"qmoon-complete", L"completes a word", key_complete, L"^I"},
};

/* What people expect of keys beyond libedit's own. */
static const char *const bound[][2] = {
    {"\\e[A", "ed-search-prev-history"}, {"\\eOA", "ed-search-prev-history"},
    {"\\e[B", "ed-search-next-history"}, {"\\eOB", "ed-search-next-history"},
    {"^R", "em-inc-search-prev"},        {"\\e[1;5C", "em-next-word"},
    {"\\e[1;5D", "ed-prev-word"},        {"\\e[3~", "ed-delete-next-char"},
    {"\\e[H", "ed-move-to-beg"},         {"\\e[F", "ed-move-to-end"},
    {"\\eOH", "ed-move-to-beg"},         {"\\eOF", "ed-move-to-end"},
    {"\\e[1~", "ed-move-to-beg"},        {"\\e[4~", "ed-move-to-end"},
};

static void set_up(editor *ed)
{
    EditLine *el = ed->el;
    HistEvent event;
    el_set(el, EL_CLIENTDATA, ed);
    el_set(el, EL_EDITOR, "emacs");
    el_set(el, EL_PROMPT_ESC, prompt_of, '\1');
    el_set(el, EL_GETCFN, read_key);
    history(ed->history, &event, H_SETSIZE, HISTORY);
    el_set(el, EL_HIST, history, ed->history);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        el_wset(el, EL_ADDFN, keys[i].name, keys[i].help, keys[i].run);
        el_wset(el, EL_BIND, keys[i].key, keys[i].name, NULL);
    }
    for (size_t i = 0; i < sizeof bound / sizeof bound[0]; i++)
        el_set(el, EL_BIND, bound[i][0], bound[i][1], NULL);
}

/* editor(complete) -> an editor of the terminal at standard input and output.  complete(text before the
 * cursor) -> text to insert, text to show, how many characters before the cursor to take away first; any may
 * be nil. */
static int new_editor(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    qm_err e = {0};
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return luaL_error(L, "lines can only be edited on a terminal");
    void **box = qml_box(L, EDITOR);
    editor *ed = calloc(1, sizeof *ed);
    *box = ed;
    if (ed) {
        ed->L = L;
        ed->complete = LUA_NOREF;
        ed->history = history_init();
        ed->el = el_init("qmoon", stdin, stdout, stderr);
    }
    if (!ed || !ed->history || !ed->el) {
        qm_fail(&e, QM_EFAIL, "this terminal cannot be edited on; TERM=dumb reads plain lines");
        return qml_raise(L, &e);
    }
    lua_pushvalue(L, 1);
    ed->complete = luaL_ref(L, LUA_REGISTRYINDEX);
    set_up(ed);
    catch_signals();
    return 1;
}

/* e:read(prompt) -> the line; nil, "end" at the end of the input; nil, "interrupt" after Ctrl-C. */
static int editor_read(lua_State *L)
{
    editor *ed = qml_check(L, 1, EDITOR);
    const char *prompt = luaL_checkstring(L, 2);
    if (strlen(prompt) >= sizeof ed->prompt)
        return luaL_argerror(L, 2, "is too long for a prompt");
    strcpy(ed->prompt, prompt);
    ed->interrupted = ed->ended = false;
    ed->L = L;
    tcgetattr(STDIN_FILENO, &cooked);
    editing = 1;
    put(PASTE_ON);
    el_set(ed->el, EL_PREP_TERM,
           1); /* before the prompt shows: what is typed at once must not be echoed twice */
    int n = 0;
    const char *line = el_gets(ed->el, &n);
    put(PASTE_OFF);
    editing = 0;
    if (ed->interrupted)
        put("^C\r\n");
    if (ed->interrupted || !line || n <= 0) {
        lua_pushnil(L);
        lua_pushstring(L, ed->interrupted ? "interrupt" : "end");
        return 2;
    }
    lua_pushlstring(L, line, (size_t)n - (line[n - 1] == '\n'));
    return 1;
}

/* e:remember(text): one more entry of the history that the arrow keys go through. */
static int editor_remember(lua_State *L)
{
    editor *ed = qml_check(L, 1, EDITOR);
    HistEvent event;
    history(ed->history, &event, H_ENTER, luaL_checkstring(L, 2));
    return 0;
}

/* append_private(path, text): adds text to a file that only its owner can read, in one piece, so that two
 * sessions never mix lines.  Returns true, or nil and why not. */
static int append_private(lua_State *L)
{
    size_t n;
    const char *path = qml_check_text(L, 1), *text = luaL_checklstring(L, 2, &n);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    bool ok = fd >= 0 && write(fd, text, n) == (ssize_t)n;
    int why = errno;
    if (fd >= 0)
        close(fd);
    if (ok) {
        lua_pushboolean(L, 1);
        return 1;
    }
    lua_pushnil(L);
    lua_pushstring(L, strerror(why));
    return 2;
}

/* process() -> the number of this process.  process(number) -> whether there is one of that number. */
static int process(lua_State *L)
{
    if (lua_isnoneornil(L, 1))
        lua_pushinteger(L, getpid());
    else
        lua_pushboolean(L, kill((pid_t)luaL_checkinteger(L, 1), 0) == 0 || errno == EPERM);
    return 1;
}

void qml_open_edit(lua_State *L)
{
    static const luaL_Reg methods[] = {{"read", editor_read}, {"remember", editor_remember}, {NULL, NULL}};
    static const luaL_Reg functions[] = {
        {"editor", new_editor}, {"append_private", append_private}, {"process", process}, {NULL, NULL}};
    qml_class(L, EDITOR, methods, editor_gc);
    qml_functions(L, functions);
}
