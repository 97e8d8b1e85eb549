/* model.h - a model folder in Hugging Face's layout, PEFT adapters, and the layer loop.
 *
 * Files are untrusted: every size and offset is checked before use, and what would change the
 * output but is not supported is refused by the name of the field or tensor; never silently wrong.
 * A base model's weight files are mapped from model_open() to model_weights(): who cuts one short
 * in that time ends the process. Those of the embedding and the head stay open, and nobody may
 * write to them while the model is. Adapters' files are read. Thread: a model is immutable after
 * model_weights(); model_step() belongs to the loop thread, and model_adapter_*() may run on any
 * number of loader threads. */
#ifndef LORRY_MODEL_MODEL_H
#define LORRY_MODEL_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/kernels.h"
#include "pool/pool.h"

/* ---- the model ---------------------------------------------------------------------------- */

struct model;

enum { MODEL_EOS_MAX = 16, MODEL_NAME_BYTES = 129 };

struct model_facts {             /* of config.json and generation_config.json */
    char name[MODEL_NAME_BYTES]; /* the folder's name */
    char architecture[64]; /* "LlamaForCausalLM", "MistralForCausalLM", "Qwen2…", "Qwen3…" */
    char hash[65];         /* SHA-256 in hex over config.json and, of the weight files, the headers
                              and the first KiB of each tensor */
    struct kern_shape shape;
    uint32_t eos[MODEL_EOS_MAX]; /* the union of both files' eos_token_id */
    uint32_t eos_count;
    bool tied; /* the head is the embedding */
    /* generation_config.json's sampling defaults; where absent OpenAI's: temperature 1, top_p 1,
     * top_k 0 (off), min_p 0 (off), repetition_penalty 1 (off). `do_sample: false` with no
     * temperature gives temperature 0. */
    float temperature, top_p, min_p, repetition_penalty;
    uint32_t top_k;
    uint64_t weight_bytes; /* as stored */
    /* Where the embedding and the head lie on disk; of the model, [KERN_OUTERS]. */
    const struct model_outer *outers;
};

/* Reads config.json, generation_config.json and the headers of the weight files (mapped, not read).
 * Every tensor of the shape must be there, none left over but those known to be harmless.
 * Errors  ERR_BAD_MODEL, naming the file and the field or tensor. */
NODISCARD enum err model_open(struct model **out, const char *dir, struct err_text *why);
/* A model of a config.json alone, under a name, for benchmarks: it has a shape and facts, and its
 * weights are made by kern_ops.weights_random, not by model_weights(). */
NODISCARD enum err model_open_config(struct model **out, const char *name, const char *json,
                                     size_t bytes, struct err_text *why);
void model_close(struct model *m); /* NULL is fine */
const struct model_facts *model_facts(const struct model *m);

/* Copies all weights to the device, once, and unmaps the files. `progress` (may be NULL) gets bytes
 * done of all. Errors: what the device says. */
NODISCARD enum err model_weights(struct model *m, const struct kern_ops *ops,
                                 struct kern_device *device,
                                 void (*progress)(void *context, uint64_t done, uint64_t all),
                                 void *context, struct err_text *why);

/* Shows the device its step shapes (kern_ops.bucket_*), after the weights and before the pool. */
NODISCARD enum err model_warm(const struct model_facts *facts, const struct kern_ops *ops,
                              struct kern_device *device);

/* Runs one forward pass: step_begin, the blocks, step_end. */
NODISCARD enum err model_step(const struct model_facts *facts, const struct kern_ops *ops,
                              struct kern_device *device, const struct kern_step *step,
                              uint64_t *ticket);

/* ---- adapters ----------------------------------------------------------------------------- */

/* An adapter id: 1..128 of A-Za-z0-9._:@- and no leading dot. Nothing else reaches a path. */
bool model_adapter_id_valid(const char *id, size_t bytes);

/* What stat(2) says of an adapter, cheap enough for every look: changes when the files change. */
struct model_adapter_stamp {
    uint64_t device, inode; /* of the weights */
    uint64_t bytes;         /* of both files */
    int64_t mtime_ns;       /* the latest modification or change of either */
};
static inline bool model_adapter_stamp_equal(const struct model_adapter_stamp *a,
                                             const struct model_adapter_stamp *b) {
    return a->device == b->device && a->inode == b->inode && a->bytes == b->bytes &&
           a->mtime_ns == b->mtime_ns;
}

/* The verdict on an adapter folder: what `lorry adapters check` prints. */
struct model_adapter_facts {
    char id[POOL_ID_BYTES];
    char revision[POOL_REVISION_BYTES]; /* SHA-256 over names, lengths and bytes of
                                           adapter_config.json and the weight file */
    uint32_t rank_max;
    uint32_t modules;     /* adapted (layer, module) pairs; embedding and head count too */
    uint64_t file_bytes;  /* of the weights on disk */
    uint64_t image_bytes; /* in the host store */
    uint32_t page_count;
    /* Of the files that were read; zeros where a change meanwhile might not show in it, as of files
     * that are only seconds old. */
    struct model_adapter_stamp stamp;
};

/* What was found when these very files were read before. */
struct model_adapter_known {
    struct model_adapter_stamp stamp; /* of model_adapter_facts; not zeros */
    char revision[POOL_REVISION_BYTES];
};

/* Threads that help a loader. run() calls `part` once for each index below `count`, on any threads,
 * the caller's too, and returns when all have returned. */
struct model_crew {
    void (*run)(void *context, uint32_t count, void (*part)(void *argument, uint32_t index),
                void *argument);
    void *context;
};

static inline void model_crew_run(const struct model_crew *crew, uint32_t count,
                                  void (*part)(void *argument, uint32_t index), void *argument) {
    if (crew->run != NULL && count > 1) {
        crew->run(crew->context, count, part, argument);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        part(argument, i);
    }
}

struct model_adapter_options {
    const char *root;        /* folder of PEFT folders; a folder's name is the adapter's id */
    uint32_t page_tokens;    /* T: gives page_elems */
    enum kern_dtype elem;    /* of the device */
    uint32_t page_count_max; /* an adapter that needs more pages is refused; bounds the file, too */
    struct model_crew crew;  /* empty: the caller works alone */
    /* Of the adapter that is loaded, or NULL: files of that stamp are not hashed again. */
    const struct model_adapter_known *known;
};

/* Errors  ERR_UNKNOWN_ADAPTER (no such folder, and the root is there), ERR_ADAPTER_UNREADABLE (the
 *         root or the folder cannot be read now). */
NODISCARD enum err model_adapter_stat(const char *root, const char *id,
                                      struct model_adapter_stamp *stamp, struct err_text *why);

/* Reads, checks and converts an adapter into the host store. `*image` is held for the caller. A
 * folder that is replaced while it is read is left for the one in its place.
 * Errors  ERR_UNKNOWN_ADAPTER, ERR_ADAPTER_UNREADABLE, ERR_BAD_ADAPTER, ERR_UNSUPPORTED_ADAPTER:
 *         why names the file, field or tensor; ERR_NO_SPACE: the store is full of held images, or
 *         there is no memory for the files: worth retrying.
 * Cost    reads the files once, whole, into memory that is given back; hashes them, if they are not
 *         known; one pass of conversion, unless an image of the same bytes is in the store. The
 *         crew shares in the reading and the conversion; the hash is one part of it. Copies of the
 *         embedding and the head are read with them, and the model's own in small parts. */
NODISCARD enum err model_adapter_load(const struct model_facts *model,
                                      const struct model_adapter_options *options, const char *id,
                                      struct pool_store *store, struct pool_image **image,
                                      struct model_adapter_facts *facts, struct err_text *why);

/* The same checks without a store. */
NODISCARD enum err model_adapter_check(const struct model_facts *model,
                                       const struct model_adapter_options *options, const char *id,
                                       struct model_adapter_facts *facts, struct err_text *why);

/* Calls `each` for every valid id in the root, sorted. Folders with invalid names are passed with
 * `valid` false. ERR_ADAPTER_UNREADABLE when the root cannot be read. */
NODISCARD enum err model_adapter_list(const char *root,
                                      void (*each)(void *context, const char *name, bool valid),
                                      void *context, struct err_text *why);

#endif
