/* cmd_completion.c - `lorry completion bash|zsh`. */
#include <string.h>

#include "tools/describe.h"

static const char *const own_flags[] = {NULL};

static const char help[] =
    "Prints what a shell needs to complete commands, flags and their values with the tab key.\n"
    "\n"
    "  source <(lorry completion bash)\n"
    "  lorry completion bash > ~/.local/share/bash-completion/completions/lorry\n"
    "  lorry completion zsh > \"${fpath[1]}/_lorry\"\n";

static int run(const struct tool *t) {
    const char *shell = t->argument_count == 1 ? t->arguments[0] : "";
    if (strcmp(shell, "bash") == 0) {
        describe_bash(stdout, tool_commands);
    } else if (strcmp(shell, "zsh") == 0) {
        describe_zsh(stdout, tool_commands);
    } else {
        return tool_usage(t, "completion takes bash or zsh");
    }
    return EXIT_DONE;
}

const struct command cmd_completion = {
    .name = "completion",
    .arguments = "bash|zsh",
    .summary = "completion for a shell, to be sourced by it",
    .help = help,
    .own_flags = own_flags,
    .run = run,
    .unconfigured = true,
};
