#include <string.h>

#include "tests/unit/wire/cmocka_all.h"
#include "wire/utf8.h"

static void expect(const char *text, size_t bytes, size_t prefix) {
    assert_int_equal(wire_utf8_prefix(text, bytes), prefix);
}

static void valid_text(void **state) {
    static const char *const good[] = {
        "",
        "plain ASCII that is longer than eight bytes",
        "\xC2\x80",
        "\xDF\xBF",
        "\xE0\xA0\x80",
        "\xED\x9F\xBF",
        "\xEE\x80\x80",
        "\xEF\xBF\xBF",
        "\xF0\x90\x80\x80",
        "\xF4\x8F\xBF\xBF",
        "mixed \xE4\xB8\x96\xE7\x95\x8C \xF0\x9F\x8C\x8D text",
    };
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        expect(good[i], strlen(good[i]), strlen(good[i]));
    }
    expect("a\0b", 3, 3);
}

static void invalid_text(void **state) {
    static const char *const bad[] = {
        "\x80",             /* a continuation alone */
        "\xC0\xAF",         /* overlong */
        "\xC1\xBF",         /* overlong */
        "\xE0\x9F\xBF",     /* overlong */
        "\xF0\x8F\xBF\xBF", /* overlong */
        "\xED\xA0\x80",     /* a surrogate */
        "\xED\xBF\xBF",     /* a surrogate */
        "\xF4\x90\x80\x80", /* above U+10FFFF */
        "\xF5\x80\x80\x80",
        "\xFF",
        "\xFE",
        "\xC3",         /* cut off */
        "\xE4\xB8",     /* cut off */
        "\xF0\x9F\x8C", /* cut off */
        "\xC3(",
        "\xE4\xB8(",
        "\xF0\x9F\x8C(",
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[32];
        expect(bad[i], strlen(bad[i]), 0);
        for (size_t before = 0; before < 17; before++) { /* at each place of the fast path */
            memset(text, 'a', before);
            memcpy(text + before, bad[i], strlen(bad[i]));
            expect(text, before + strlen(bad[i]), before);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(valid_text),
        cmocka_unit_test(invalid_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
