/* flags.h - config/'s own: the command line taken apart. */
#ifndef LORRY_CONFIG_FLAGS_H
#define LORRY_CONFIG_FLAGS_H

#include "config/options.h"

/* One option on the command line. */
struct flag {
    const char *text;             /* the value; into argv, or a constant */
    uint32_t option;              /* index into option_table */
    char name[OPTION_NAME_BYTES]; /* as written: "--model", "-X" */
};

struct flags {
    struct flag *items; /* in the order given; room for argc */
    uint32_t count;
    const char *config_path; /* of --config; NULL = not given */
};

/* Takes the options out of input->argv and moves the rest to its front, *rest_count of them.
 * Errors  ERR_BAD_CONFIG: an unknown flag (the nearest is named), a missing or surplus value. */
NODISCARD enum err flags_take(struct flags *f, const struct config_input *input,
                              const char *const *own_flags, int *rest_count, struct err_text *why);
void flags_deinit(struct flags *f);

#endif
