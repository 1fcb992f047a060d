/* embed.h: the Lua files inside the program, written by lua/embed.sh; ends with a NULL name. */
#ifndef QML_EMBED_H
#define QML_EMBED_H

typedef struct qml_file {
    const char *name; /* "qmoon.arch.qwen2", or "command:merge" */
    const char *path; /* in the source tree, for messages */
    const char *start, *end;
} qml_file;

extern const qml_file qml_embedded[];

#endif
