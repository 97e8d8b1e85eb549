/* An adapter's way from its folder into the host store:
 *
 *     id → folder → both files into memory → revision → config, header → plan → image
 *
 * The files are read, not mapped, and hashed from the same bytes that are converted, so that an
 * image is what its revision says even when somebody writes to the folder meanwhile. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "model/adapter_plan.h"
#include "model/file.h"
#include "model/model.h"
#include "model/outer.h"
#include "model/peft_config.h"
#include "model/safetensors.h"

/* ---- ids and folders ---------------------------------------------------------------------- */

bool model_adapter_id_valid(const char *id, size_t bytes) {
    if (bytes == 0 || bytes >= POOL_ID_BYTES || id[0] == '.') {
        return false;
    }
    for (size_t i = 0; i < bytes; i++) {
        char c = id[i];
        bool alphanumeric =
            (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        /* Without the length check strchr() would find a NUL. */
        if (!alphanumeric && (c == '\0' || strchr("._:@-", c) == NULL)) {
            return false;
        }
    }
    return true;
}

static enum err root_open(const char *root, int *fd, struct err_text *why) {
    *fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd >= 0) {
        return ERR_OK;
    }
    char room[128];
    return err_set(why, ERR_ADAPTER_UNREADABLE, "the adapters' folder %.256s cannot be opened: %s",
                   root, strerror_r(errno, room, sizeof room));
}

/* Opens an adapter's folder. A symbolic link is fine: the root belongs to the operator, and an id
 * holds no slash. */
static enum err folder_open(const char *root, const char *id, int *fd, struct err_text *why) {
    if (!model_adapter_id_valid(id, strlen(id))) {
        return err_set(why, ERR_UNKNOWN_ADAPTER, "this is not a valid adapter id");
    }
    int root_fd = -1;
    enum err e = root_open(root, &root_fd, why);
    if (e != ERR_OK) {
        return e;
    }
    *fd = openat(root_fd, id, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = errno;
    (void)close(root_fd);
    if (*fd >= 0) {
        return ERR_OK;
    }
    if (error == ENOENT || error == ENOTDIR) {
        return err_set(why, ERR_UNKNOWN_ADAPTER, "no adapter has the id %s", id);
    }
    char room[128];
    return err_set(why, ERR_ADAPTER_UNREADABLE, "adapter %s cannot be opened: %s", id,
                   strerror_r(error, room, sizeof room));
}

/* ---- stat --------------------------------------------------------------------------------- */

enum err model_adapter_stat(const char *root, const char *id, struct model_adapter_stamp *stamp,
                            struct err_text *why) {
    static const char *const files[] = {MODEL_PEFT_FILE, MODEL_ADAPTER_FILE};
    int dir = -1;
    enum err e = folder_open(root, id, &dir, why);
    if (e != ERR_OK) {
        return e;
    }
    struct model_adapter_stamp s = {0};
    for (size_t i = 0; i < sizeof files / sizeof files[0] && e == ERR_OK; i++) {
        struct stat file;
        if (fstatat(dir, files[i], &file, 0) != 0) {
            if (errno != ENOENT) {
                char room[128];
                e = err_set_field(why, ERR_ADAPTER_UNREADABLE, files[i], "adapter %s: %s: %s", id,
                                  files[i], strerror_r(errno, room, sizeof room));
            }
            continue; /* missing: the load will say so */
        }
        /* The change time as well: cp -p writes into the same inode and sets the old mtime. */
        const struct timespec *times[] = {&file.st_mtim, &file.st_ctim};
        for (size_t k = 0; k < 2; k++) {
            int64_t ns = (int64_t)times[k]->tv_sec * 1000000000 + times[k]->tv_nsec;
            s.mtime_ns = ns > s.mtime_ns ? ns : s.mtime_ns;
        }
        s.device = file.st_dev;
        s.inode = file.st_ino; /* at last of the weights */
        s.bytes += (uint64_t)file.st_size;
    }
    (void)close(dir);
    if (e == ERR_OK) {
        *stamp = s;
    }
    return e;
}

/* ---- reading ------------------------------------------------------------------------------ */

/* All that is known of an adapter before its image is made. Owns what it points to. */
struct parsed {
    struct model_bytes config, weights;
    struct model_st st;
    struct model_peft peft;
    struct model_adapter_plan plan;
};

static void parsed_deinit(struct parsed *p) {
    model_adapter_plan_deinit(&p->plan);
    model_peft_deinit(&p->peft);
    model_st_deinit(&p->st);
    model_bytes_free(&p->weights);
    model_bytes_free(&p->config);
}

static enum err file_error(const char *file, int error, struct err_text *why) {
    char room[128];
    const char *text = model_file_error(error, room, sizeof room);
    switch (error) {
    case ENOENT:
        return err_set_field(why, ERR_BAD_ADAPTER, file, "%s is missing", file);
    case EINVAL:
        return err_set_field(why, ERR_BAD_ADAPTER, file, "%s: %s", file, text);
    case EFBIG:
        return err_set_field(why, ERR_UNSUPPORTED_ADAPTER, file, "%s: %s", file, text);
    case ENOMEM: /* passes when another load ends */
        return err_set_field(why, ERR_NO_SPACE, file, "%s: no memory to read it", file);
    default: /* EACCES, EIO, ESTALE, EMFILE, …: may be otherwise later */
        return err_set_field(why, ERR_ADAPTER_UNREADABLE, file, "%s: %s", file, text);
    }
}

/* Says why there are no weights to read. */
static enum err weights_missing(int dir, struct err_text *why) {
    static const char *const pickles[] = {"adapter_model.bin", "adapter_model.pt"};
    for (size_t i = 0; i < sizeof pickles / sizeof pickles[0]; i++) {
        if (faccessat(dir, pickles[i], F_OK, 0) == 0) {
            return err_set_field(why, ERR_UNSUPPORTED_ADAPTER, pickles[i],
                                 "%s is a pickle, which can run code and is not read; save it as "
                                 "safetensors",
                                 pickles[i]);
        }
    }
    return file_error(MODEL_ADAPTER_FILE, ENOENT, why);
}

/* No adapter that fits into the allowed pages has a larger file: an element of the image, or of a
 * copy of the embedding or the head, takes at most 4 bytes of it. */
static uint64_t weights_bytes_max(const struct kern_shape *shape,
                                  const struct model_adapter_options *o, uint64_t page_elems) {
    uint64_t bytes = 0;
    uint64_t others =
        MODEL_ST_HEADER_BYTES_MAX + (uint64_t)shape->vocab * shape->hidden * KERN_OUTERS * 4;
    if (__builtin_mul_overflow((uint64_t)o->page_count_max * shape->layers * 4, page_elems,
                               &bytes)) {
        return UINT64_MAX;
    }
    return bytes > UINT64_MAX - others ? UINT64_MAX : bytes + others;
}

static enum err read_files(struct parsed *p, int dir, uint64_t bytes_max, struct err_text *why) {
    int error = model_file_read(dir, MODEL_PEFT_FILE, MODEL_PEFT_BYTES_MAX, &p->config);
    if (error != 0) {
        return file_error(MODEL_PEFT_FILE, error, why);
    }
    error = model_file_read(dir, MODEL_ADAPTER_FILE, bytes_max, &p->weights);
    if (error == ENOENT) {
        return weights_missing(dir, why);
    }
    return error == 0 ? ERR_OK : file_error(MODEL_ADAPTER_FILE, error, why);
}

static enum err hash_files(const struct parsed *p, char hex[POOL_REVISION_BYTES],
                           struct err_text *why) {
    EVP_MD_CTX *sha = model_sha_begin();
    if (sha == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for SHA-256");
    }
    model_sha_part(sha, MODEL_PEFT_FILE, p->config.data, p->config.count);
    model_sha_part(sha, MODEL_ADAPTER_FILE, p->weights.data, p->weights.count);
    model_sha_hex(sha, hex);
    return ERR_OK;
}

static enum err parse(struct parsed *p, const struct kern_shape *shape,
                      const struct model_adapter_options *o, struct err_text *why) {
    uint64_t page_elems = kern_page_elems(shape, o->page_tokens);
    struct model_origin origin = {MODEL_ADAPTER_FILE, ERR_BAD_ADAPTER};
    enum err e = model_peft_parse(&p->peft, &p->config, why);
    if (e == ERR_OK) {
        e = model_st_parse(&p->st, p->weights.data, p->weights.count, origin, why);
    }
    if (e == ERR_OK) {
        e = model_adapter_plan(&p->plan, shape, &p->peft, &p->st, page_elems, why);
    }
    if (e == ERR_OK && p->plan.page_count > o->page_count_max) {
        e = err_set_field(why, ERR_UNSUPPORTED_ADAPTER, MODEL_ADAPTER_FILE,
                          "the adapter needs %u pages, one may have %u", p->plan.page_count,
                          o->page_count_max);
    }
    return e;
}

static void fill_facts(struct model_adapter_facts *f, const struct parsed *p,
                       const struct kern_shape *shape, const struct model_adapter_options *o) {
    f->rank_max = p->plan.rank_max;
    f->modules = p->plan.modules;
    f->file_bytes = p->weights.count;
    f->page_count = p->plan.page_count;
    f->image_bytes = (uint64_t)shape->layers * p->plan.page_count *
                     kern_page_elems(shape, o->page_tokens) * kern_dtype_bytes(o->elem);
}

/* Reads and checks all but the tensors' values. */
static enum err open_adapter(struct parsed *p, const struct model_facts *model,
                             const struct model_adapter_options *o, const char *id,
                             struct model_adapter_facts *facts, struct err_text *why) {
    const struct kern_shape *shape = &model->shape;
    struct model_adapter_facts f = {0};
    int dir = -1;
    enum err e = folder_open(o->root, id, &dir, why);
    if (e != ERR_OK) {
        return e;
    }
    uint64_t page_elems = kern_page_elems(shape, o->page_tokens);
    (void)snprintf(f.id, sizeof f.id, "%s", id);
    e = read_files(p, dir, weights_bytes_max(shape, o, page_elems), why);
    (void)close(dir);
    if (e == ERR_OK) {
        e = hash_files(p, f.revision, why);
    }
    if (e == ERR_OK) {
        e = parse(p, shape, o, why);
    }
    if (e == ERR_OK) {
        fill_facts(&f, p, shape, o);
        *facts = f;
    }
    return e;
}

/* PEFT computes with the copies, Lorry with the base's own: they must be the same. */
static enum err compare_copies(const struct parsed *p, const struct model_facts *model,
                               struct err_text *why) {
    enum err e = ERR_OK;
    for (uint32_t i = 0; i < KERN_OUTERS && e == ERR_OK; i++) {
        if (p->plan.copies[i] != NULL) {
            e = model_outer_compare(&model->outers[i], p->plan.copies[i], why);
        }
    }
    return e;
}

/* ---- the image ---------------------------------------------------------------------------- */

/* Where the list of entry `entry` begins in the image: its layer's plane, or the second list. */
static void *list_begin(const struct model_adapter_plan *plan, uint64_t page_elems,
                        const struct model_adapter_options *o, void *elements, uint32_t entry) {
    uint32_t layer_pages = plan->page_count - plan->outer_pages;
    return (unsigned char *)elements +
           (uint64_t)(entry / KERN_MODULES) * layer_pages * page_elems * kern_dtype_bytes(o->elem);
}

/* Stores one part of an entry: 0 is A, 1 is B, 2 the bias. */
static void store_part(const struct parsed *p, const struct kern_shape *shape,
                       const struct model_adapter_options *o, void *elements, uint32_t entry,
                       unsigned part) {
    const struct model_lora_pair *pair = &p->plan.pairs[entry];
    const struct model_tensor *const tensors[] = {pair->a, pair->b, pair->bias};
    const struct kern_lora *lora = &p->plan.lora[entry];
    uint64_t page_elems = kern_page_elems(shape, o->page_tokens);
    void *list = list_begin(&p->plan, page_elems, o, elements, entry);
    const struct kern_source from = {.data = tensors[part]->data,
                                     .dtype = tensors[part]->dtype,
                                     .rank = (uint32_t)pair->a->shape[0],
                                     .columns = part == 0 ? kern_lora_in(shape, entry)
                                                          : kern_lora_out(shape, entry)};
    if (part == 2) {
        kern_bias_store(list, o->elem, lora, &from);
    } else if (part == 1) {
        kern_matrix_store_b(list, o->elem, page_elems, lora, &from);
    } else if (entry == shape->layers * KERN_MODULES + KERN_OUTER_EMBED) {
        kern_matrix_store_a_gathered(list, o->elem, page_elems, lora, &from);
    } else {
        kern_matrix_store_a(list, o->elem, page_elems, lora, &from);
    }
}

/* Checks every tensor's values and puts it into `elements`, as pool_image has them; NULL: only
 * checks. */
static enum err convert(const struct parsed *p, const struct kern_shape *shape,
                        const struct model_adapter_options *o, void *elements,
                        struct err_text *why) {
    const struct model_adapter_plan *plan = &p->plan;
    for (uint32_t i = 0; i < kern_lora_count(plan->layers); i++) {
        const struct model_lora_pair *pair = &plan->pairs[i];
        const struct model_tensor *const parts[] = {pair->a, pair->b, pair->bias};
        for (unsigned part = 0; part < 3; part++) {
            const struct model_tensor *t = parts[part];
            if (t == NULL) {
                continue;
            }
            if (!kern_finite(t->data, t->dtype, t->elements, t->dtype)) {
                return err_set_field(why, ERR_BAD_ADAPTER, t->name,
                                     MODEL_ADAPTER_FILE ": tensor %s holds NaN or infinity",
                                     t->name);
            }
            if (!kern_finite(t->data, t->dtype, t->elements, o->elem)) {
                return err_set_field(why, ERR_UNSUPPORTED_ADAPTER, t->name,
                                     MODEL_ADAPTER_FILE
                                     ": tensor %s holds values too large for the model's type",
                                     t->name);
            }
            if (elements != NULL) {
                store_part(p, shape, o, elements, i, part);
            }
        }
    }
    return ERR_OK;
}

static enum err make_image(const struct parsed *p, const struct kern_shape *shape,
                           const struct model_adapter_options *o,
                           const struct model_adapter_facts *f, struct pool_store *store,
                           struct pool_image **image, struct err_text *why) {
    uint64_t page_elems = kern_page_elems(shape, o->page_tokens);
    struct pool_image wanted = {.rank_max = f->rank_max,
                                .page_count = f->page_count,
                                .outer_pages = p->plan.outer_pages,
                                .layers = shape->layers,
                                .page_elems = page_elems,
                                .bytes = f->image_bytes};
    memcpy(wanted.id, f->id, sizeof wanted.id);
    memcpy(wanted.revision, f->revision, sizeof wanted.revision);
    struct pool_image *made = NULL;
    enum err e = pool_store_reserve(store, &wanted, kern_dtype_bytes(o->elem), &made, why);
    if (e != ERR_OK) {
        return e;
    }
    e = convert(p, shape, o, made->elements, why);
    if (e != ERR_OK) {
        pool_store_abort(store, made);
        return e;
    }
    memcpy(made->lora, p->plan.lora, kern_lora_count(shape->layers) * sizeof *made->lora);
    *image = pool_store_commit(store, made);
    return ERR_OK;
}

enum err model_adapter_load(const struct model_facts *model,
                            const struct model_adapter_options *options, const char *id,
                            struct pool_store *store, struct pool_image **image,
                            struct model_adapter_facts *facts, struct err_text *why) {
    struct parsed p = {0};
    struct model_adapter_facts f = {0};
    enum err e = open_adapter(&p, model, options, id, &f, why);
    if (e == ERR_OK) {
        /* Found: these very bytes were converted before. */
        struct pool_image *found = pool_store_find(store, f.id, f.revision);
        if (found == NULL) {
            e = compare_copies(&p, model, why);
        }
        if (found == NULL && e == ERR_OK) {
            e = make_image(&p, &model->shape, options, &f, store, &found, why);
        }
        if (e == ERR_OK) {
            *image = found;
            *facts = f;
        }
    }
    parsed_deinit(&p);
    return e;
}

enum err model_adapter_check(const struct model_facts *model,
                             const struct model_adapter_options *options, const char *id,
                             struct model_adapter_facts *facts, struct err_text *why) {
    struct parsed p = {0};
    struct model_adapter_facts f = {0};
    enum err e = open_adapter(&p, model, options, id, &f, why);
    if (e == ERR_OK) {
        e = compare_copies(&p, model, why);
    }
    if (e == ERR_OK) {
        e = convert(&p, &model->shape, options, NULL, why);
    }
    if (e == ERR_OK) {
        *facts = f;
    }
    parsed_deinit(&p);
    return e;
}

/* ---- the list ----------------------------------------------------------------------------- */

static int folder_filter(const struct dirent *entry) {
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

static int folder_order(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name); /* not alphasort(), which asks the locale */
}

enum err model_adapter_list(const char *root,
                            void (*each)(void *context, const char *name, bool valid),
                            void *context, struct err_text *why) {
    int fd = -1;
    enum err e = root_open(root, &fd, why);
    if (e != ERR_OK) {
        return e;
    }
    struct dirent **entries = NULL;
    int count = scandirat(fd, ".", &entries, folder_filter, folder_order);
    if (count < 0) {
        char room[128];
        e = err_set(why, ERR_ADAPTER_UNREADABLE, "the adapters' folder %.256s cannot be read: %s",
                    root, strerror_r(errno, room, sizeof room));
    }
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;
        struct stat s; /* of what a link points to */
        if (fstatat(fd, name, &s, 0) == 0 && S_ISDIR(s.st_mode)) {
            each(context, name, model_adapter_id_valid(name, strlen(name)));
        }
        free(entries[i]);
    }
    free(entries);
    (void)close(fd);
    return e;
}
