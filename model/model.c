#include "model/model.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "model/config.h"
#include "model/file.h"
#include "model/outer.h"
#include "model/weights.h"

struct model {
    struct model_facts facts;
    float *rope_freq;                   /* facts.shape.rope_freq */
    struct model_checkpoint checkpoint; /* empty after model_weights() */
    struct model_outer outers[KERN_OUTERS];
};

static enum err read_json_file(int dir, const char *name, bool optional, struct model_bytes *out,
                               struct err_text *why) {
    int error = model_file_read(dir, name, MODEL_CONFIG_BYTES_MAX, out);
    if (error == 0 || (error == ENOENT && optional)) {
        return ERR_OK;
    }
    char room[128];
    return err_set_field(why, ERR_BAD_MODEL, name, "%s: %s", name,
                         model_file_error(error, room, sizeof room));
}

/* The folder's own name, also for "." and "models/x/". */
static enum err read_name(struct model_facts *facts, const char *dir, struct err_text *why) {
    char *path = realpath(dir, NULL);
    const char *given = dir;
    size_t length = strlen(given);
    while (length > 1 && given[length - 1] == '/') {
        length--;
    }
    size_t begin = length;
    while (begin > 0 && given[begin - 1] != '/') {
        begin--;
    }
    const char *name = given + begin;
    length -= begin;
    if (path != NULL && (length == 0 || strncmp(name, "..", length) == 0)) {
        name = strrchr(path, '/') + 1; /* realpath's result is absolute */
        length = strlen(name);
    }
    enum err e = ERR_OK;
    if (length == 0 || length >= MODEL_NAME_BYTES) {
        e = err_set_field(why, ERR_BAD_MODEL, "model.dir",
                          "the name of the model's folder must have 1 .. %d bytes",
                          MODEL_NAME_BYTES - 1);
    } else {
        (void)snprintf(facts->name, sizeof facts->name, "%.*s", (int)length, name);
    }
    free(path);
    return e;
}

static enum err open_outers(struct model *m, int dir, struct err_text *why) {
    enum err e = ERR_OK;
    for (enum kern_outer o = 0; o < KERN_OUTERS && e == ERR_OK; o++) {
        bool head = o == KERN_OUTER_HEAD && !m->facts.tied;
        e = model_outer_open(&m->outers[o], dir, &m->checkpoint, head ? KERN_LM_HEAD : KERN_EMBED,
                             why);
    }
    m->facts.outers = m->outers;
    return e;
}

static enum err open_all(struct model *m, const char *dir, int fd, struct err_text *why) {
    struct model_bytes config = {0};
    struct model_bytes generation = {0};
    enum err e = read_json_file(fd, "config.json", false, &config, why);
    if (e == ERR_OK) {
        e = read_json_file(fd, "generation_config.json", true, &generation, why);
    }
    if (e == ERR_OK) {
        e = model_config_parse(&m->facts, &m->rope_freq, &config, &generation, why);
    }
    if (e == ERR_OK) {
        e = read_name(&m->facts, dir, why);
    }
    if (e == ERR_OK) {
        e = model_checkpoint_open(&m->checkpoint, fd, &m->facts, why);
    }
    if (e == ERR_OK) {
        e = open_outers(m, fd, why);
    }
    if (e == ERR_OK) {
        m->facts.shape.dtype = model_checkpoint_dtype(&m->checkpoint);
        EVP_MD_CTX *sha = model_sha_begin();
        if (sha == NULL) {
            e = err_set(why, ERR_NO_MEMORY, "no memory for SHA-256");
        } else {
            model_sha_part(sha, "config.json", config.data, config.count);
            model_checkpoint_hash(&m->checkpoint, sha);
            model_sha_hex(sha, m->facts.hash);
            m->facts.weight_bytes = m->checkpoint.bytes;
        }
    }
    model_bytes_free(&config);
    model_bytes_free(&generation);
    return e;
}

/* Puts the folder before an error's text: the files in it are named without it. */
static void name_folder(struct err_text *why, const char *dir) {
    if (why != NULL) {
        struct err_text inner = *why;
        (void)snprintf(why->message, sizeof why->message, "%.200s: %.300s", dir, inner.message);
    }
}

enum err model_open(struct model **out, const char *dir, struct err_text *why) {
    struct model *m = calloc(1, sizeof *m);
    if (m == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for a model");
    }
    for (enum kern_outer o = 0; o < KERN_OUTERS; o++) {
        m->outers[o].fd = -1;
    }
    enum err e;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        char room[128];
        e = err_set_field(why, ERR_BAD_MODEL, "model.dir",
                          "the model's folder cannot be opened: %s",
                          model_file_error(errno == EINVAL ? ENOTDIR : errno, room, sizeof room));
    } else {
        e = open_all(m, dir, fd, why);
        (void)close(fd);
    }
    if (e != ERR_OK) {
        name_folder(why, dir);
        model_close(m);
        return e;
    }
    *out = m;
    return ERR_OK;
}

/* What a checkpoint of this config would be stored in: `dtype`, before transformers 5
 * `torch_dtype`; bf16 where it does not say. */
static enum kern_dtype config_dtype(const char *json, size_t bytes) {
    static const char *const fields[] = {"dtype", "torch_dtype"};
    enum kern_dtype dtype = KERN_BF16;
    json_t *root = json_loadb(json, bytes, 0, NULL);
    for (int i = 0; i < 2; i++) {
        const char *text = json_string_value(json_object_get(root, fields[i]));
        if (text != NULL && strcmp(text, "float16") == 0) {
            dtype = KERN_F16;
        } else if (text != NULL && strcmp(text, "float32") == 0) {
            dtype = KERN_F32;
        }
    }
    json_decref(root);
    return dtype;
}

/* Of all matrices, a head of its own among them. */
static uint64_t shape_weights(const struct kern_shape *s) {
    uint64_t count = 2 * (uint64_t)s->vocab * s->hidden;
    for (enum kern_module m = 0; m < KERN_MODULES; m++) {
        count += (uint64_t)s->layers * kern_module_in(s, m) * kern_module_out(s, m);
    }
    return count;
}

enum err model_open_config(struct model **out, const char *name, const char *json, size_t bytes,
                           struct err_text *why) {
    struct model_bytes none = {0};
    struct model_bytes config = {.data = malloc(bytes + 1), .count = bytes};
    struct model *m = calloc(1, sizeof *m);
    EVP_MD_CTX *sha = model_sha_begin();
    enum err e = ERR_NO_MEMORY;
    if (m == NULL || sha == NULL || config.data == NULL) {
        (void)err_set(why, e, "no memory for a model");
        goto out;
    }
    memcpy(config.data, json, bytes);
    e = model_config_parse(&m->facts, &m->rope_freq, &config, &none, why);
    if (e != ERR_OK) {
        goto out;
    }
    (void)snprintf(m->facts.name, sizeof m->facts.name, "%s", name);
    m->facts.tied = false;
    m->facts.shape.dtype = config_dtype(json, bytes);
    m->facts.weight_bytes = shape_weights(&m->facts.shape) * kern_dtype_bytes(m->facts.shape.dtype);
    model_sha_part(sha, "config.json", config.data, config.count);
    model_sha_hex(sha, m->facts.hash);
    sha = NULL;
    *out = m;
    m = NULL;
out:
    EVP_MD_CTX_free(sha);
    model_bytes_free(&config);
    model_close(m);
    return e;
}

void model_close(struct model *m) {
    if (m == NULL) {
        return;
    }
    model_checkpoint_close(&m->checkpoint);
    for (enum kern_outer o = 0; o < KERN_OUTERS; o++) {
        model_outer_close(&m->outers[o]);
    }
    free(m->rope_freq);
    free(m);
}

const struct model_facts *model_facts(const struct model *m) {
    return &m->facts;
}

enum err model_weights(struct model *m, const struct kern_ops *ops, struct kern_device *device,
                       void (*progress)(void *context, uint64_t done, uint64_t all), void *context,
                       struct err_text *why) {
    struct model_checkpoint *c = &m->checkpoint;
    CHECK(c->weight_count > 0); /* once */
    uint64_t done = 0;
    for (uint32_t i = 0; i < c->weight_count; i++) {
        const struct kern_weight *w = &c->weights[i];
        enum err e = ops->weight(device, w, why);
        if (e != ERR_OK) {
            return e;
        }
        done += w->rows * w->columns * (w->dtype == KERN_F32 ? 4 : 2);
        if (progress != NULL) {
            progress(context, done, c->bytes);
        }
    }
    CHECK(done == c->bytes);
    model_checkpoint_close(c);
    return ERR_OK;
}
