/* json.h: cJSON behind a strict door.
 *
 * cJSON is lenient where a file format may not be: it takes duplicate keys, invalid UTF-8, control
 * characters, text after the value, and rounds large integers.  qm_json_parse checks the text first and
 * refuses: bytes that are not UTF-8, lone surrogates, control characters in strings, U+0000 (C strings end
 * there), duplicate keys in one object, anything but blanks around the value, integers beyond 2^53, numbers
 * that are not JSON's or beyond double, nesting deeper than QM_JSON_DEPTH, texts of more than `limit` bytes
 * or QM_JSON_VALUES values.
 *
 * One integer beyond 2^53 is common in the field: transformers writes int(1e30) for "no limit".  So those
 * beyond 2^64, which can be no size, id or count, are taken when a double holds every digit of them.
 *
 * Arrays and objects are linked lists in cJSON: walk them with ->next; an index costs a walk.
 */
#ifndef QM_JSON_H
#define QM_JSON_H

#include <cjson/cJSON.h>

#include "qm.h"

#define QM_JSON_DEPTH  64
#define QM_JSON_VALUES (8u << 20) /* cJSON takes 80 bytes a value; the largest tokenizers have 2 million */

/* `what` names the text in messages ("config.json", "model.safetensors header").  Free with
 * cJSON_Delete.  NULL on failure, with the byte offset in the message. */
cJSON *qm_json_parse(const char *text, size_t length, size_t limit, const char *what, qm_err *e);

/* For headers made of sizes and offsets: besides, refuses every number that is not spelled as a whole one, 0
 * or more, no greater than 2^53 (1.0 and 1e3 are numbers too, but the tree no longer shows the difference).
 */
cJSON *qm_json_parse_sizes(const char *text, size_t length, size_t limit, const char *what, qm_err *e);

#endif
