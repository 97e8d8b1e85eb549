/* describe.h - the command table and the options as shells and man want them. Pure text.
 *
 * All is taken from the table: flags from own_flags, what they take from the usage line, what they
 * mean from the help's lines that begin with two spaces and the flag. */
#ifndef LORRY_TOOLS_DESCRIBE_H
#define LORRY_TOOLS_DESCRIBE_H

#include "tools/tool.h"

/* `commands` is NULL-terminated. */
void describe_bash(FILE *out, const struct command *const *commands);
void describe_zsh(FILE *out, const struct command *const *commands);
/* lorry(1) in roff. `ending`: the help's last lines, as they are. */
void describe_man(FILE *out, const struct command *const *commands, const char *ending);

#endif
