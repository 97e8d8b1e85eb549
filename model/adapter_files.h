/* adapter_files.h - the two files of an adapter's folder: found, read whole, hashed.
 *
 * They are read, not mapped, and hashed from the same bytes that are converted, so that an image is
 * what its revision says even when somebody writes to the folder meanwhile. */
#ifndef LORRY_MODEL_ADAPTER_FILES_H
#define LORRY_MODEL_ADAPTER_FILES_H

#include "model/file.h"
#include "model/model.h"

struct model_adapter_files {
    struct model_bytes config, weights;
    /* Of what was read; zeros where it may have been changed since without a trace. */
    struct model_adapter_stamp stamp;
};

/* Opens the root, or an adapter's folder in it, whose id may be anything.
 * Errors  ERR_ADAPTER_UNREADABLE, ERR_UNKNOWN_ADAPTER. */
NODISCARD enum err model_adapter_root(const char *root, int *fd, struct err_text *why);
NODISCARD enum err model_adapter_folder(const char *root, const char *id, int *fd,
                                        struct err_text *why);
/* Whether the id has come to name another folder than the open one, or none. */
bool model_adapter_folder_changed(const char *root, const char *id, int dir);

/* On an error `out` is empty. Thread: any; the parts of a large file are read by the crew.
 * Errors  ERR_BAD_ADAPTER, ERR_UNSUPPORTED_ADAPTER (weights above `bytes_max`, a pickle),
 *         ERR_NO_SPACE (no memory now), ERR_ADAPTER_UNREADABLE; why names the file. */
NODISCARD enum err model_adapter_files_read(struct model_adapter_files *out, int dir,
                                            uint64_t bytes_max, const struct model_crew *crew,
                                            struct err_text *why);
void model_adapter_files_deinit(struct model_adapter_files *f);
/* The revision. Cost: SHA-256 of all bytes, some 1.5 GB/s. ERR_NO_MEMORY. */
NODISCARD enum err model_adapter_files_hash(const struct model_adapter_files *f,
                                            char hex[POOL_REVISION_BYTES]);

#endif
