/* json.h: cJSON behind a strict door.
 *
 * cJSON is lenient where a file format may not be: it takes duplicate keys, invalid UTF-8,
 * text after the value, and rounds large integers.  qm_json_parse checks the text first and
 * refuses: bytes that are not UTF-8, lone surrogates, control characters in strings, duplicate keys in one object,
 * anything but blanks after the value, integers beyond 2^53, numbers that are not JSON's, nesting deeper than
 * QM_JSON_DEPTH, texts larger than `limit` bytes.
 */
#ifndef QM_JSON_H
#define QM_JSON_H

#include <cjson/cJSON.h>

#include "qm.h"

#define QM_JSON_DEPTH 64

/* `what` names the text in messages ("config.json", "model.safetensors header").  Free with
 * cJSON_Delete.  NULL on failure, with the byte offset in the message. */
cJSON *qm_json_parse(const char *text, size_t length, size_t limit, const char *what, qm_err *e);

#endif
