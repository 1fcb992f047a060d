/* bind_tokenizer.c: what the hot loops of tokenizers are given and asked for: vocabularies, splitters,
 * matchers, normal forms.  lua/qmoon/tokenize/ decides which of them a model's tokenizer is made of. */
#include <string.h>

#include "../core/tokenizer/charsmap.h"
#include "../core/tokenizer/splitter.h"
#include "../core/tokenizer/unicode.h"
#include "../core/tokenizer/vocabulary.h"
#include "bind.h"

#define QML_VOCABULARY "qmoon.vocabulary"
#define QML_SPLITTER   "qmoon.splitter"
#define QML_MATCHER    "qmoon.matcher"
#define QML_CHARSMAP   "qmoon.charsmap"
#define QML_SCRATCH    "qmoon.scratch"

/* ---- lists ------------------------------------------------------------------------------------ */

/* Pushes the list at a field of the table at 1, or nil; its length. */
static size_t push_list(lua_State *L, const char *name, bool required)
{
    lua_getfield(L, 1, name);
    if (lua_isnil(L, -1) && !required)
        return 0;
    if (!lua_istable(L, -1))
        luaL_error(L, "field '%s' must be a list", name);
    return lua_objlen(L, -1);
}

static double number_at(lua_State *L, int list, size_t i, const char *name)
{
    lua_rawgeti(L, list, (int)i + 1);
    if (lua_type(L, -1) != LUA_TNUMBER)
        luaL_error(L, "field '%s': element %d must be a number", name, (int)i + 1);
    double v = lua_tonumber(L, -1);
    lua_pop(L, 1);
    return v;
}

static uint32_t to_id(lua_State *L, double v, const char *name)
{
    if (!(v >= 0 && v < QM_NO_PIECE && v == (double)(uint32_t)v)) {
        qm_err e = {0};
        qm_fail(&e, QM_ECORRUPT, "%s: %.17g is no id, which is a whole number below 2^32 - 1", name, v);
        qml_raise(L, &e);
    }
    return (uint32_t)v;
}

/* A list of ids, or of anything that is like them, as memory that Lua owns, left on the stack; NULL for no
 * list. */
static uint32_t *ids_field(lua_State *L, const char *name, bool required, size_t *n)
{
    *n = push_list(L, name, required);
    if (lua_isnil(L, -1))
        return NULL;
    int list = lua_gettop(L);
    uint32_t *ids = lua_newuserdata(L, (*n + 1) * sizeof *ids);
    for (size_t i = 0; i < *n; i++)
        ids[i] = to_id(L, number_at(L, list, i, name), name);
    return ids;
}

/* Results on their way to Lua, which may run out of memory at any time: collected with everything else. */
typedef struct scratch {
    qm_words words;
    qm_ids ids;
    qm_bytes bytes;
} scratch;

static scratch *new_scratch(lua_State *L)
{
    scratch *s = lua_newuserdata(L, sizeof *s);
    *s = (scratch){0};
    luaL_getmetatable(L, QML_SCRATCH);
    lua_setmetatable(L, -2);
    return s;
}

static void free_scratch(scratch *s)
{
    qm_words_free(&s->words);
    qm_ids_free(&s->ids);
    qm_bytes_free(&s->bytes);
}

static int scratch_gc(lua_State *L)
{
    free_scratch(lua_touserdata(L, 1));
    return 0;
}

/* ---- vocabularies ------------------------------------------------------------------------------ */

static const char *const kinds[] = {"merges", "scores", "unigram", NULL};

static uint32_t field_id(lua_State *L, const char *name)
{
    double v = qml_field_number(L, 1, name, -1);
    return v == -1 ? QM_NO_PIECE : to_id(L, v, name);
}

/* `bytes`: a list of 256, with false for those that have no id. */
static void read_bytes(lua_State *L, qm_vocabulary_rules *rules)
{
    size_t n = push_list(L, "bytes", false);
    if (!(rules->byte_fallback = !lua_isnil(L, -1)))
        return;
    int list = lua_gettop(L);
    if (n != 256)
        luaL_error(L, "field 'bytes' must have 256 elements");
    for (int i = 0; i < 256; i++) {
        lua_rawgeti(L, list, i + 1);
        rules->byte_id[i] = lua_isnumber(L, -1) ? to_id(L, lua_tonumber(L, -1), "bytes") : QM_NO_PIECE;
        lua_pop(L, 1);
    }
}

static void read_rules(lua_State *L, qm_vocabulary_rules *r)
{
    const char *kind = qml_field_string(L, 1, "kind", "");
    int k = 0;
    while (kinds[k] && strcmp(kinds[k], kind) != 0)
        k++;
    if (!kinds[k])
        luaL_error(L, "field 'kind' must be merges, scores or unigram, got '%s'", kind);
    *r = (qm_vocabulary_rules){
        .kind = (qm_vocabulary_kind)k,
        .unknown = field_id(L, "unknown"),
        .fuse_unknown = qml_field_boolean(L, 1, "fuse_unknown", false),
        .whole_words = qml_field_boolean(L, 1, "whole_words", false),
        .single = qml_field_boolean(L, 1, "single", false),
        .unknown_score = qml_field_number(L, 1, "unknown_score", 0),
        .prefix = qml_field_string(L, 1, "prefix", NULL),
        .suffix = qml_field_string(L, 1, "suffix", NULL),
    };
    read_bytes(L, r);
}

/* The list `pieces` is on the stack, at `list`; its elements have been looked at. */
static bool add_pieces(lua_State *L, int list, size_t n, const uint32_t *ids, qm_pieces *p, qm_err *e)
{
    if (!qm_pieces_init(p, n, e))
        return false;
    for (size_t i = 0; i < n; i++) {
        size_t length;
        lua_rawgeti(L, list, (int)i + 1);
        const char *text = lua_tolstring(L, -1, &length);
        bool fine = qm_pieces_add(p, text, length, ids[i], e);
        lua_pop(L, 1);
        if (!fine) {
            qm_pieces_free(p);
            return false;
        }
    }
    return true;
}

static void check_strings(lua_State *L, int list, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, list, (int)i + 1);
        if (lua_type(L, -1) != LUA_TSTRING || lua_objlen(L, -1) == 0)
            luaL_error(L, "field '%s': element %d must be a string that is not empty", name, (int)i + 1);
        lua_pop(L, 1);
    }
}

static double *scores_field(lua_State *L, size_t *n)
{
    *n = push_list(L, "scores", false);
    if (lua_isnil(L, -1))
        return NULL;
    int list = lua_gettop(L);
    double *scores = lua_newuserdata(L, (*n + 1) * sizeof *scores);
    for (size_t i = 0; i < *n; i++)
        scores[i] = number_at(L, list, i, "scores");
    return scores;
}

/* `unused`: the set of places in `pieces` whose pieces are. */
static bool *unused_field(lua_State *L, size_t n)
{
    lua_getfield(L, 1, "unused");
    if (!lua_istable(L, -1))
        return NULL;
    int set = lua_gettop(L);
    bool *unused = lua_newuserdata(L, n + 1);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, set, (int)i + 1);
        unused[i] = lua_toboolean(L, -1);
        lua_pop(L, 1);
    }
    return unused;
}

/* vocabulary{kind = "merges" | "scores" | "unigram", pieces = strings, all different, ids = of each,
 *     merges = {left, right, made, …} ids, ranks = of each piece (scores), scores = of each piece (unigram),
 *     unused = {[place] = true}, unknown = id, bytes = 256 ids or false, fuse_unknown =, whole_words =,
 * single =, unknown_score =, prefix =, suffix =}: see core/tokenizer/vocabulary.h. */
static int vocabulary_new(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    void **box = qml_box(L, QML_VOCABULARY);
    qm_vocabulary_rules rules;
    read_rules(L, &rules);
    size_t n = push_list(L, "pieces", true), n_ids, n_merges, n_ranks, n_scores;
    int list = lua_gettop(L);
    check_strings(L, list, n, "pieces");
    const uint32_t *ids = ids_field(L, "ids", true, &n_ids);
    const uint32_t *merges = ids_field(L, "merges", false, &n_merges);
    const uint32_t *ranks = ids_field(L, "ranks", rules.kind == QM_BY_SCORES, &n_ranks);
    const double *scores = scores_field(L, &n_scores);
    const bool *unused = unused_field(L, n);
    if (n_ids != n || (ranks && n_ranks != n) || (scores && n_scores != n) || n_merges % 3 != 0
        || (rules.kind == QM_UNIGRAM && !scores))
        return luaL_error(L, "pieces, ids, ranks and scores must be lists of one length, merges of triples");
    qm_pieces pieces;
    qm_err e = {0};
    if (!add_pieces(L, list, n, ids, &pieces, &e))
        return qml_raise(L, &e);
    if (pieces.end.n != n) {
        qm_pieces_free(&pieces);
        return luaL_error(L, "field 'pieces': some are equal");
    }
    *box = qm_vocabulary_new(&pieces, &rules, (const qm_merge *)(const void *)merges, n_merges / 3, ranks,
                             scores, unused, &e);
    lua_settop(L, 2);
    return *box ? 1 : qml_raise(L, &e);
}

static int vocabulary_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_VOCABULARY);
    qm_vocabulary_free(*box);
    *box = NULL;
    return 0;
}

/* v:id(piece) -> id or nil. */
static int vocabulary_id(lua_State *L)
{
    const qm_vocabulary *v = qml_check(L, 1, QML_VOCABULARY);
    size_t n;
    const char *text = luaL_checklstring(L, 2, &n);
    uint32_t id = qm_vocabulary_id(v, text, n);
    if (id == QM_NO_PIECE)
        lua_pushnil(L);
    else
        lua_pushnumber(L, id);
    return 1;
}

static bool encode_words(qm_vocabulary *v, const qm_splitter *splitter, const char *text, size_t n,
                         bool first, scratch *s, qm_err *e)
{
    if (!splitter)
        return qm_vocabulary_encode(v, text, n, &s->ids, e);
    if (!qm_splitter_cut(splitter, text, n, first, &s->words, e))
        return false;
    for (size_t i = 0; i < s->words.n; i++) {
        qm_span w = s->words.span[i];
        if (i % 4096 == 4095 && qm_interrupted())
            return qm_fail(e, QM_EINTERRUPT, "interrupted");
        if (!qm_vocabulary_encode(v, s->words.text.at + w.from, w.to - w.from, &s->ids, e))
            return false;
    }
    return true;
}

/* v:encode(text, splitter or nil, first, ids): appends to the list ids. */
static int vocabulary_encode(lua_State *L)
{
    qm_vocabulary *v = qml_check(L, 1, QML_VOCABULARY);
    size_t n;
    const char *text = luaL_checklstring(L, 2, &n);
    const qm_splitter *splitter = lua_isnil(L, 3) ? NULL : qml_check(L, 3, QML_SPLITTER);
    bool first = lua_toboolean(L, 4);
    luaL_checktype(L, 5, LUA_TTABLE);
    scratch *s = new_scratch(L);
    qm_err e = {0};
    if (!encode_words(v, splitter, text, n, first, s, &e))
        return qml_raise(L, &e);
    size_t have = lua_objlen(L, 5);
    for (size_t i = 0; i < s->ids.n; i++) {
        lua_pushnumber(L, s->ids.at[i]);
        lua_rawseti(L, 5, (int)(have + i) + 1);
    }
    free_scratch(s); /* long before the collector would */
    return 0;
}

/* ---- splitters --------------------------------------------------------------------------------- */

static const char *const split_kinds[] = {"regex", "bytes", "spaces", "prefix", NULL};
static const char *const behaviours[] = {"removed",     "isolated",   "contiguous",
                                         "with_before", "with_after", NULL};
static const char *const prepends[] = {"never", "first", "always", NULL};

/* The place of a field's text among names. */
static int field_choice(lua_State *L, int table, const char *field, const char *const names[])
{
    const char *text = qml_field_string(L, table, field, names[0]);
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], text) == 0)
            return i;
    return luaL_error(L, "field '%s' cannot be '%s'", field, text);
}

static void read_split(lua_State *L, int table, qm_split *to)
{
    *to = (qm_split){
        .kind = (qm_split_kind)field_choice(L, table, "kind", split_kinds),
        .pattern = qml_field_string(L, table, "pattern", NULL),
        .behaviour = (qm_split_behaviour)field_choice(L, table, "behaviour", behaviours),
        .invert = qml_field_boolean(L, table, "invert", false),
        .blank = qml_field_string(L, table, "blank", "\xe2\x96\x81"),
        .prepend = (qm_prepend)field_choice(L, table, "prepend", prepends),
        .cut = qml_field_boolean(L, table, "cut", false),
    };
    if (to->kind == QM_SPLIT_REGEX && !to->pattern)
        luaL_error(L, "field 'pattern' is missing");
    if (!*to->blank)
        luaL_error(L, "field 'blank' is empty");
}

/* splitter{{kind = "regex", pattern =, behaviour =, invert =}, {kind = "bytes"},
 *     {kind = "spaces", blank =, prepend =, cut =}, {kind = "prefix"}, …}: see core/tokenizer/splitter.h. */
static int splitter_new(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    void **box = qml_box(L, QML_SPLITTER);
    size_t n = lua_objlen(L, 1);
    qm_split *steps = lua_newuserdata(L, (n + 1) * sizeof *steps);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, 1, (int)i + 1);
        luaL_checktype(L, -1, LUA_TTABLE);
        read_split(L, lua_gettop(L), &steps[i]); /* its strings stay in the list */
        lua_pop(L, 1);
    }
    qm_err e = {0};
    *box = qm_splitter_new(steps, n, &e);
    lua_settop(L, 2);
    return *box ? 1 : qml_raise(L, &e);
}

static int splitter_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_SPLITTER);
    qm_splitter_free(*box);
    *box = NULL;
    return 0;
}

/* s:cut(text, first) -> list of words. */
static int splitter_cut(lua_State *L)
{
    const qm_splitter *splitter = qml_check(L, 1, QML_SPLITTER);
    size_t n;
    const char *text = luaL_checklstring(L, 2, &n);
    bool first = lua_toboolean(L, 3);
    scratch *s = new_scratch(L);
    qm_err e = {0};
    if (!qm_splitter_cut(splitter, text, n, first, &s->words, &e))
        return qml_raise(L, &e);
    lua_createtable(L, (int)s->words.n, 0);
    for (size_t i = 0; i < s->words.n; i++) {
        qm_span w = s->words.span[i];
        lua_pushlstring(L, s->words.text.at + w.from, w.to - w.from);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

/* ---- added tokens ------------------------------------------------------------------------------ */

static void read_token(lua_State *L, int table, qm_added_token *t)
{
    lua_getfield(L, table, "text");
    t->text = lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, &t->n) : NULL;
    lua_pop(L, 1);
    if (!t->text)
        luaL_error(L, "field 'text' must be a string");
    t->id = to_id(L, qml_field_number(L, table, "id", -1), "id");
    t->single_word = qml_field_boolean(L, table, "single_word", false);
    t->lstrip = qml_field_boolean(L, table, "lstrip", false);
    t->rstrip = qml_field_boolean(L, table, "rstrip", false);
    t->special = qml_field_boolean(L, table, "special", false);
}

/* matcher{{text =, id =, single_word =, lstrip =, rstrip =, special =}, …}: see core/tokenizer/matcher.h. */
static int matcher_new(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    void **box = qml_box(L, QML_MATCHER);
    size_t n = lua_objlen(L, 1);
    qm_added_token *tokens = lua_newuserdata(L, (n + 1) * sizeof *tokens);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, 1, (int)i + 1);
        luaL_checktype(L, -1, LUA_TTABLE);
        read_token(L, lua_gettop(L), &tokens[i]);
        lua_pop(L, 1);
    }
    qm_err e = {0};
    *box = qm_matcher_new(tokens, n, &e);
    lua_settop(L, 2);
    return *box ? 1 : qml_raise(L, &e);
}

static int matcher_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_MATCHER);
    qm_matcher_free(*box);
    *box = NULL;
    return 0;
}

/* m:find(text, special) -> {first byte, byte behind the last, id, …} of every match, bytes from 1. */
static int matcher_find(lua_State *L)
{
    const qm_matcher *m = qml_check(L, 1, QML_MATCHER);
    size_t n, at = 0;
    const char *text = luaL_checklstring(L, 2, &n);
    bool special = lua_toboolean(L, 3);
    qm_match match = {0};
    lua_newtable(L);
    for (int i = 1; qm_matcher_next(m, text, n, special, match.to, &at, &match); i += 3) {
        lua_pushnumber(L, (double)match.from + 1);
        lua_rawseti(L, -2, i);
        lua_pushnumber(L, (double)match.to + 1);
        lua_rawseti(L, -2, i + 1);
        lua_pushnumber(L, match.id);
        lua_rawseti(L, -2, i + 2);
    }
    return 1;
}

/* ---- text -------------------------------------------------------------------------------------- */

static int push_bytes(lua_State *L, scratch *s)
{
    if (s->bytes.failed)
        return luaL_error(L, "out of memory");
    lua_pushlstring(L, s->bytes.at ? s->bytes.at : "", s->bytes.n);
    free_scratch(s);
    return 1;
}

/* utf8_repair(bytes) -> the same as UTF-8, U+FFFD where it was none. */
static int utf8_repair(lua_State *L)
{
    size_t n;
    const char *text = luaL_checklstring(L, 1, &n);
    scratch *s = new_scratch(L);
    qm_unicode_repair(text, n, &s->bytes);
    return push_bytes(L, s);
}

/* unicode_form(text, "NFC" | "NFD" | "NFKC" | "NFKD" | "lowercase" | "without_marks") -> text. */
static int unicode_form(lua_State *L)
{
    static const char *const forms[] = {"NFC", "NFD", "NFKC", "NFKD", "lowercase", "without_marks", NULL};
    size_t n;
    const char *text = luaL_checklstring(L, 1, &n);
    int form = luaL_checkoption(L, 2, NULL, forms);
    scratch *s = new_scratch(L);
    qm_err e = {0};
    if (!qm_unicode_form_of((qm_unicode_form)form, text, n, &s->bytes, &e))
        return qml_raise(L, &e);
    return push_bytes(L, s);
}

/* charsmap(bytes): "" for one that changes nothing; see core/tokenizer/charsmap.h. */
static int charsmap_new(lua_State *L)
{
    size_t n;
    const char *bytes = luaL_checklstring(L, 1, &n);
    void **box = qml_box(L, QML_CHARSMAP);
    qm_err e = {0};
    *box = qm_charsmap_new(bytes, n, &e);
    return *box ? 1 : qml_raise(L, &e);
}

static int charsmap_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_CHARSMAP);
    qm_charsmap_free(*box);
    *box = NULL;
    return 0;
}

/* m:graphemes(text) -> text. */
static int charsmap_graphemes(lua_State *L)
{
    const qm_charsmap *m = qml_check(L, 1, QML_CHARSMAP);
    size_t n;
    const char *text = luaL_checklstring(L, 2, &n);
    scratch *s = new_scratch(L);
    qm_charsmap_graphemes(m, text, n, &s->bytes);
    return push_bytes(L, s);
}

/* m:sentence(text, {prefix =, suffix =, squeeze =, escape =}, kept: matcher or nil) -> text. */
static int charsmap_sentence(lua_State *L)
{
    const qm_charsmap *m = qml_check(L, 1, QML_CHARSMAP);
    size_t n;
    const char *text = luaL_checklstring(L, 2, &n);
    luaL_checktype(L, 3, LUA_TTABLE);
    qm_sentence_rules rules = {
        .prefix = qml_field_boolean(L, 3, "prefix", false),
        .suffix = qml_field_boolean(L, 3, "suffix", false),
        .squeeze = qml_field_boolean(L, 3, "squeeze", false),
        .escape = qml_field_boolean(L, 3, "escape", false),
    };
    const qm_matcher *kept = lua_isnoneornil(L, 4) ? NULL : qml_check(L, 4, QML_MATCHER);
    scratch *s = new_scratch(L);
    qm_charsmap_sentence(m, &rules, kept, text, n, &s->bytes);
    return push_bytes(L, s);
}

void qml_open_tokenizer(lua_State *L)
{
    static const luaL_Reg vocabulary[] = {{"id", vocabulary_id}, {"encode", vocabulary_encode}, {NULL, NULL}};
    static const luaL_Reg splitter[] = {{"cut", splitter_cut}, {NULL, NULL}};
    static const luaL_Reg matcher[] = {{"find", matcher_find}, {NULL, NULL}};
    static const luaL_Reg none[] = {{NULL, NULL}};
    static const luaL_Reg charsmap[] = {
        {"graphemes", charsmap_graphemes}, {"sentence", charsmap_sentence}, {NULL, NULL}};
    static const luaL_Reg functions[] = {{"vocabulary", vocabulary_new},
                                         {"splitter", splitter_new},
                                         {"matcher", matcher_new},
                                         {"utf8_repair", utf8_repair},
                                         {"unicode_form", unicode_form},
                                         {"charsmap", charsmap_new},
                                         {NULL, NULL}};
    qml_class(L, QML_VOCABULARY, vocabulary, vocabulary_gc);
    qml_class(L, QML_SPLITTER, splitter, splitter_gc);
    qml_class(L, QML_MATCHER, matcher, matcher_gc);
    qml_class(L, QML_CHARSMAP, charsmap, charsmap_gc);
    qml_class(L, QML_SCRATCH, none, scratch_gc);
    qml_functions(L, functions);
}
