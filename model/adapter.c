/* An adapter's way from its folder into the host store:
 *
 *     id → folder → both files into memory → config, header → plan → image, with the revision
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/adapter_files.h"
#include "model/adapter_image.h"
#include "model/adapter_plan.h"
#include "model/model.h"
#include "model/outer.h"
#include "model/peft_config.h"
#include "model/safetensors.h"

enum { READS_MAX = 16 }; /* of folders that are replaced while they are read */

/* ---- parsing ------------------------------------------------------------------------------ */

/* All that is known of an adapter before its image is made. Owns what it points to. */
struct parsed {
    struct model_adapter_files files;
    struct model_st st;
    struct model_peft peft;
    struct model_adapter_plan plan;
};

static void parsed_deinit(struct parsed *p) {
    model_adapter_plan_deinit(&p->plan);
    model_peft_deinit(&p->peft);
    model_st_deinit(&p->st);
    model_adapter_files_deinit(&p->files);
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

static enum err parse(struct parsed *p, const struct kern_shape *shape,
                      const struct model_adapter_options *o, struct err_text *why) {
    uint64_t page_elems = kern_page_elems(shape, o->page_tokens);
    struct model_origin origin = {MODEL_ADAPTER_FILE, ERR_BAD_ADAPTER};
    enum err e = model_peft_parse(&p->peft, &p->files.config, why);
    if (e == ERR_OK) {
        e = model_st_parse(&p->st, p->files.weights.data, p->files.weights.count, origin, why);
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
    f->file_bytes = p->files.weights.count;
    f->page_count = p->plan.page_count;
    f->stamp = p->files.stamp;
    f->image_bytes = (uint64_t)shape->layers * p->plan.page_count *
                     kern_page_elems(shape, o->page_tokens) * kern_dtype_bytes(o->elem);
}

/* Reads both files of the folder that the id names now. `gone`: whether it failed at a folder that
 * the id names no more, for one that was replaced may be deleted while it is read. */
static enum err read_folder(struct model_adapter_files *files, const char *id, uint64_t bytes_max,
                            const struct model_adapter_options *o, bool *gone,
                            struct err_text *why) {
    int dir = -1;
    enum err e = model_adapter_folder(o->root, id, &dir, why);
    if (e != ERR_OK) {
        return e;
    }
    e = model_adapter_files_read(files, dir, bytes_max, &o->crew, why);
    *gone = e != ERR_OK && model_adapter_folder_changed(o->root, id, dir);
    (void)close(dir);
    return e;
}

/* The same until it is read, or is not to be. */
static enum err read_files(struct model_adapter_files *files, const char *id, uint64_t bytes_max,
                           const struct model_adapter_options *o, struct err_text *why) {
    struct err_text cause;
    enum err e = ERR_OK;
    bool gone = true;
    for (uint32_t turn = 0; gone && turn < READS_MAX; turn++) {
        gone = false;
        cause = (struct err_text){0}; /* nothing is said of a folder that another has replaced */
        e = read_folder(files, id, bytes_max, o, &gone, &cause);
    }
    if (e != ERR_OK && why != NULL) {
        *why = cause;
    }
    return e;
}

/* Reads the files, and takes the revision from what was known before where that is of these very
 * bytes; else it stays empty. */
static enum err read_adapter(struct parsed *p, const struct model_facts *model,
                             const struct model_adapter_options *o, const char *id,
                             struct model_adapter_facts *facts, struct err_text *why) {
    uint64_t page_elems = kern_page_elems(&model->shape, o->page_tokens);
    uint64_t bytes_max = weights_bytes_max(&model->shape, o, page_elems);
    enum err e = read_files(&p->files, id, bytes_max, o, why);
    if (e != ERR_OK) {
        return e;
    }
    static const struct model_adapter_stamp none;
    (void)snprintf(facts->id, sizeof facts->id, "%s", id);
    if (o->known != NULL && !model_adapter_stamp_equal(&p->files.stamp, &none) &&
        model_adapter_stamp_equal(&p->files.stamp, &o->known->stamp)) {
        memcpy(facts->revision, o->known->revision, sizeof facts->revision);
    }
    return ERR_OK;
}

/* Reads and checks all but the tensors' values. */
static enum err parse_adapter(struct parsed *p, const struct model_facts *model,
                              const struct model_adapter_options *o,
                              struct model_adapter_facts *facts, struct err_text *why) {
    enum err e = parse(p, &model->shape, o, why);
    if (e == ERR_OK) {
        fill_facts(facts, p, &model->shape, o);
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

static struct model_adapter_image image_of(const struct parsed *p, const struct kern_shape *shape,
                                           const struct model_adapter_options *o,
                                           struct model_adapter_facts *f) {
    return (struct model_adapter_image){.files = &p->files,
                                        .plan = &p->plan,
                                        .shape = shape,
                                        .options = o,
                                        .revision = f->revision[0] == '\0' ? f->revision : NULL};
}

/* Finishes the facts as well. */
static enum err make_image(const struct parsed *p, const struct kern_shape *shape,
                           const struct model_adapter_options *o, struct model_adapter_facts *f,
                           struct pool_store *store, struct pool_image **image,
                           struct err_text *why) {
    uint64_t page_elems = kern_page_elems(shape, o->page_tokens);
    struct pool_image wanted = {.rank_max = f->rank_max,
                                .page_count = f->page_count,
                                .outer_pages = p->plan.outer_pages,
                                .layers = shape->layers,
                                .page_elems = page_elems,
                                .bytes = f->image_bytes};
    memcpy(wanted.id, f->id, sizeof wanted.id);
    struct pool_image *made = NULL;
    enum err e = pool_store_reserve(store, &wanted, kern_dtype_bytes(o->elem), &made, why);
    if (e != ERR_OK) {
        return e;
    }
    struct model_adapter_image making = image_of(p, shape, o, f);
    making.elements = made->elements;
    e = model_adapter_image_make(&making, why);
    if (e != ERR_OK) {
        pool_store_abort(store, made);
        return e;
    }
    memcpy(made->lora, p->plan.lora, kern_lora_count(shape->layers) * sizeof *made->lora);
    memcpy(made->revision, f->revision, sizeof made->revision);
    *image = pool_store_commit(store, made);
    return ERR_OK;
}

/* An image of these very bytes that is there, or a new one. */
static enum err find_or_make(const struct parsed *p, const struct model_facts *model,
                             const struct model_adapter_options *o, struct model_adapter_facts *f,
                             struct pool_store *store, struct pool_image **image,
                             struct err_text *why) {
    bool hashed = f->revision[0] != '\0';
    struct pool_image *found = hashed ? pool_store_find(store, f->id, f->revision) : NULL;
    enum err e = found == NULL ? compare_copies(p, model, why) : ERR_OK;
    if (found == NULL && e == ERR_OK) {
        e = make_image(p, &model->shape, o, f, store, &found, why);
    }
    if (e == ERR_NO_SPACE && !hashed) { /* perhaps it is what fills the store */
        if (model_adapter_files_hash(&p->files, f->revision) != ERR_OK) {
            return e;
        }
        found = pool_store_find(store, f->id, f->revision);
    }
    if (found == NULL) {
        return e;
    }
    *image = found;
    return ERR_OK;
}

enum err model_adapter_load(const struct model_facts *model,
                            const struct model_adapter_options *options, const char *id,
                            struct pool_store *store, struct pool_image **image,
                            struct model_adapter_facts *facts, struct err_text *why) {
    struct parsed p = {0};
    struct model_adapter_facts f = {0};
    enum err e = read_adapter(&p, model, options, id, &f, why);
    if (e == ERR_OK) {
        e = parse_adapter(&p, model, options, &f, why);
    }
    if (e == ERR_OK) {
        e = find_or_make(&p, model, options, &f, store, image, why);
    }
    if (e == ERR_OK) {
        *facts = f;
    }
    parsed_deinit(&p);
    return e;
}

enum err model_adapter_check(const struct model_facts *model,
                             const struct model_adapter_options *options, const char *id,
                             struct model_adapter_facts *facts, struct err_text *why) {
    struct parsed p = {0};
    struct model_adapter_facts f = {0};
    enum err e = read_adapter(&p, model, options, id, &f, why);
    if (e == ERR_OK) {
        e = parse_adapter(&p, model, options, &f, why);
    }
    if (e == ERR_OK) {
        e = compare_copies(&p, model, why);
    }
    if (e == ERR_OK) {
        struct model_adapter_image checked = image_of(&p, &model->shape, options, &f);
        e = model_adapter_image_make(&checked, why);
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
    enum err e = model_adapter_root(root, &fd, why);
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
