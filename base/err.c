#include "base/err.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"

static const struct {
    const char *name;
    const char *text;
    enum err_disposition disposition;
    enum exit_code exit;
} err_table[ERR_COUNT] = {
#define XX(name, code, disposition, exit, text) [ERR_##name] = {code, text, disposition, exit},
    ERR_TABLE(XX)
#undef XX
};

static void text_fill(struct err_text *why, const char *field, const char *format, va_list args) {
    (void)snprintf(why->field, sizeof why->field, "%s", field);
    (void)vsnprintf(why->message, sizeof why->message, format, args);
}

enum err err_set(struct err_text *why, enum err e, const char *format, ...) {
    if (why != NULL) {
        va_list args;
        va_start(args, format);
        text_fill(why, "", format, args);
        va_end(args);
    }
    return e;
}

enum err err_set_field(struct err_text *why, enum err e, const char *field, const char *format,
                       ...) {
    if (why != NULL) {
        va_list args;
        va_start(args, format);
        text_fill(why, field, format, args);
        va_end(args);
    }
    return e;
}

const char *err_name(enum err e) {
    CHECK(e < ERR_COUNT);
    return err_table[e].name;
}

const char *err_text(enum err e) {
    CHECK(e < ERR_COUNT);
    return err_table[e].text;
}

enum err_disposition err_disposition(enum err e) {
    CHECK(e < ERR_COUNT);
    return err_table[e].disposition;
}

enum exit_code err_exit_code(enum err e) {
    CHECK(e < ERR_COUNT);
    return err_table[e].exit;
}
