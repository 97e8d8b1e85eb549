/* place.h - folders into and out of the adapter root, whole or not at all.
 *
 * All is prepared in a hidden folder inside the root, thus on its file system, and renamed: whoever
 * reads the root sees the old files of an adapter or the new ones, never a part. What an ended
 * process left behind (ROOT/.lorry-XXXXXX) is never served and may be deleted. Thread: one. */
#ifndef LORRY_TOOLS_PLACE_H
#define LORRY_TOOLS_PLACE_H

#include <limits.h>
#include <stdbool.h>

#include "base/err.h"

struct place { /* zero it first */
    char root[PATH_MAX];
    char dir[PATH_MAX]; /* the hidden folder; empty = none */
};

/* Makes the hidden folder. Errors  ERR_BAD_CONFIG: the root cannot be written. */
NODISCARD enum err place_open(struct place *p, const char *root, struct err_text *why);

/* Copies what a worker reads of the PEFT folder `from`, adapter_config.json and
 * adapter_model.safetensors (links are followed), into `<dir>/<id>`, and syncs it.
 * Errors  ERR_BAD_CONFIG: no such folder, a file that is missing, is no regular file or cannot be
 *         copied; ERR_UNSUPPORTED_ADAPTER: a pickle instead; ERR_INTERNAL: interrupted. */
NODISCARD enum err place_copy(struct place *p, const char *from, const char *id,
                              struct err_text *why);

/* Renames `<dir>/<id>` to `<root>/<id>`. With `replace` what has this id goes out in the same
 * moment (two renames where the file system cannot exchange); *replaced says whether there was any.
 * Errors  ERR_BAD_CONFIG: the id is taken and not to be replaced, or the rename failed; the root is
 *         as it was. */
NODISCARD enum err place_in(struct place *p, const char *id, bool replace, bool *replaced,
                            struct err_text *why);

/* Renames `<root>/<id>` into the hidden folder. Errors  ERR_UNKNOWN_ADAPTER, ERR_BAD_CONFIG. */
NODISCARD enum err place_out(struct place *p, const char *id, struct err_text *why);

/* Deletes the hidden folder with all that is in it; links are not followed. A zeroed one is fine.
 * false: something could not be deleted, `dir` still names where. */
bool place_close(struct place *p);

#endif
