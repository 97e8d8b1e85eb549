/* docs_main.c - lorry_docs configuration|example|metrics: writes a generated page to stdout. */
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/metrics.h"
#include "config/config.h"

int main(int argc, char **argv) {
    const char *page = argc == 2 ? argv[1] : "";
    if (strcmp(page, "configuration") == 0) {
        config_write_markdown(stdout);
    } else if (strcmp(page, "example") == 0) {
        config_write_example(stdout);
    } else if (strcmp(page, "metrics") == 0) {
        metrics_write_markdown(stdout);
    } else {
        (void)fprintf(stderr, "usage: lorry_docs configuration|example|metrics\n");
        return EXIT_USAGE;
    }
    return fflush(stdout) == 0 && ferror(stdout) == 0 ? EXIT_DONE : EXIT_JOBS;
}
