#include "model/weights.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/check.h"
#include "model/config.h"
#include "model/json.h"

#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME "model.safetensors.index.json"

static enum err file_error(struct err_text *why, const char *file, int error) {
    char room[128];
    return err_set_field(why, ERR_BAD_MODEL, file, "%s: %s", file,
                         model_file_error(error, room, sizeof room));
}

/* ---- the files ---------------------------------------------------------------------------- */

static enum err shard_open(struct model_shard *shard, int dir, const char *name,
                           struct err_text *why) {
    (void)snprintf(shard->name, sizeof shard->name, "%s", name);
    int fd = -1;
    struct model_stat stat = {0};
    int error = model_file_open(dir, name, &fd, &stat);
    if (error != 0) {
        return file_error(why, name, error);
    }
    void *map = MAP_FAILED;
    if (stat.bytes == 0) {
        error = EINVAL;
    } else {
        map = mmap(NULL, stat.bytes, PROT_READ, MAP_SHARED, fd, 0);
        error = map == MAP_FAILED ? errno : 0;
    }
    (void)close(fd);
    if (error != 0) {
        return stat.bytes == 0
                   ? err_set_field(why, ERR_BAD_MODEL, name, "%s: the file is empty", name)
                   : file_error(why, name, error);
    }
    shard->map = map;
    shard->bytes = stat.bytes;
    struct model_origin origin = {shard->name, ERR_BAD_MODEL};
    return model_st_parse(&shard->st, map, stat.bytes, origin, why);
}

/* A shard lies beside its index: nothing that could lead out of the folder. */
static bool shard_name_valid(const char *name) {
    size_t length = strlen(name);
    size_t suffix = strlen(".safetensors");
    return length > suffix && length < MODEL_SHARD_NAME_BYTES && name[0] != '.' &&
           strchr(name, '/') == NULL && strcmp(name + length - suffix, ".safetensors") == 0;
}

static struct model_shard *shard_find(const struct model_checkpoint *c, const char *name) {
    for (uint32_t i = 0; i < c->shard_count; i++) {
        if (strcmp(c->shards[i].name, name) == 0) {
            return &c->shards[i];
        }
    }
    return NULL;
}

static enum err shards_open(struct model_checkpoint *c, int dir, json_t *map,
                            struct err_text *why) {
    const char *tensor = NULL;
    const json_t *value = NULL;
    json_object_foreach(map, tensor, value) {
        const char *name = json_string_value(value);
        if (name == NULL || !shard_name_valid(name)) {
            char room[MODEL_JSON_TEXT_BYTES];
            return err_set_field(why, ERR_BAD_MODEL, "weight_map",
                                 INDEX_NAME ": weight_map: %s lies in no *.safetensors file",
                                 model_json_printable(tensor, room));
        }
        if (shard_find(c, name) != NULL) {
            continue;
        }
        if (c->shard_count == MODEL_SHARDS_MAX) {
            return err_set_field(why, ERR_BAD_MODEL, "weight_map",
                                 INDEX_NAME ": weight_map: more than %d files", MODEL_SHARDS_MAX);
        }
        enum err e = shard_open(&c->shards[c->shard_count++], dir, name, why);
        if (e != ERR_OK) {
            return e;
        }
    }
    return ERR_OK;
}

/* The index and the files must tell the same: each tensor in exactly the file that it names. */
static enum err index_check(const struct model_checkpoint *c, const json_t *map,
                            struct err_text *why) {
    size_t tensors = 0;
    for (uint32_t i = 0; i < c->shard_count; i++) {
        const struct model_shard *shard = &c->shards[i];
        for (uint32_t k = 0; k < shard->st.count; k++) {
            const char *name = shard->st.tensors[k].name;
            const char *listed = json_string_value(json_object_get(map, name));
            if (listed == NULL || strcmp(listed, shard->name) != 0) {
                return err_set_field(why, ERR_BAD_MODEL, name,
                                     INDEX_NAME ": tensor %s of %s is not listed there", name,
                                     shard->name);
            }
            tensors++;
        }
    }
    if (tensors != json_object_size(map)) {
        return err_set_field(why, ERR_BAD_MODEL, "weight_map",
                             INDEX_NAME ": weight_map lists %zu tensors, the files hold %zu",
                             json_object_size(map), tensors);
    }
    return ERR_OK;
}

static enum err open_sharded(struct model_checkpoint *c, int dir, struct err_text *why) {
    struct model_bytes bytes = {0};
    json_t *root = NULL;
    struct model_origin origin = {INDEX_NAME, ERR_BAD_MODEL};
    int error = model_file_read(dir, INDEX_NAME, MODEL_ST_HEADER_BYTES_MAX, &bytes);
    if (error == ENOENT) {
        return err_set_field(why, ERR_BAD_MODEL, SINGLE_NAME,
                             "neither " SINGLE_NAME " nor " INDEX_NAME
                             " is there (other formats of weights are not read)");
    }
    if (error != 0) {
        return file_error(why, INDEX_NAME, error);
    }
    enum err e = model_json_parse(&root, bytes.data, bytes.count, origin, why);
    if (e != ERR_OK) {
        goto out;
    }
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map)) {
        e = err_set_field(why, ERR_BAD_MODEL, "weight_map",
                          INDEX_NAME ": weight_map must be an object");
        goto out;
    }
    e = shards_open(c, dir, map, why);
    if (e == ERR_OK) {
        e = index_check(c, map, why);
    }
out:
    json_decref(root);
    model_bytes_free(&bytes);
    return e;
}

static enum err open_files(struct model_checkpoint *c, int dir, struct err_text *why) {
    c->shards = calloc(MODEL_SHARDS_MAX, sizeof *c->shards);
    if (c->shards == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the list of weight files");
    }
    if (faccessat(dir, SINGLE_NAME, F_OK, 0) != 0 && errno == ENOENT) {
        return open_sharded(c, dir, why);
    }
    c->shard_count = 1;
    return shard_open(&c->shards[0], dir, SINGLE_NAME, why);
}

/* ---- the tensors -------------------------------------------------------------------------- */

/* All tensors of all files by name, and which of them the model has asked for. */
struct tensor_ref {
    const struct model_tensor *tensor;
    const char *file;
    bool taken;
};

struct tensor_table {
    struct tensor_ref *refs;
    size_t count;
};

static int by_name(const void *left, const void *right) {
    const struct tensor_ref *a = left;
    const struct tensor_ref *b = right;
    return strcmp(a->tensor->name, b->tensor->name);
}

static enum err table_init(struct tensor_table *table, const struct model_checkpoint *c,
                           struct err_text *why) {
    size_t count = 0;
    for (uint32_t i = 0; i < c->shard_count; i++) {
        count += c->shards[i].st.count;
    }
    table->refs = calloc(count + 1, sizeof *table->refs);
    if (table->refs == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for a list of %zu tensors", count);
    }
    for (uint32_t i = 0; i < c->shard_count; i++) {
        const struct model_shard *shard = &c->shards[i];
        for (uint32_t k = 0; k < shard->st.count; k++) {
            table->refs[table->count++] =
                (struct tensor_ref){.tensor = &shard->st.tensors[k], .file = shard->name};
        }
    }
    qsort(table->refs, table->count, sizeof *table->refs, by_name);
    return ERR_OK;
}

static struct tensor_ref *table_find(const struct tensor_table *table, const char *name) {
    struct model_tensor wanted = {.name = name};
    struct tensor_ref key = {.tensor = &wanted};
    if (table->count == 0) {
        return NULL;
    }
    return bsearch(&key, table->refs, table->count, sizeof key, by_name);
}

/* Takes the tensor `name` as the weight `w`, whose rows and columns say what it must be. */
static enum err take(struct model_checkpoint *c, const struct tensor_table *table, const char *name,
                     struct kern_weight w, struct err_text *why) {
    struct tensor_ref *ref = table_find(table, name);
    if (ref == NULL) {
        return err_set_field(why, ERR_BAD_MODEL, name, "tensor %s is missing", name);
    }
    const struct model_tensor *t = ref->tensor;
    bool vector = w.rows == 1;
    bool fits = vector ? t->dims == 1 && t->shape[0] == w.columns
                       : t->dims == 2 && t->shape[0] == w.rows && t->shape[1] == w.columns;
    if (!fits) {
        char room[MODEL_ST_SHAPE_TEXT_BYTES];
        char wanted[64];
        (void)(vector ? snprintf(wanted, sizeof wanted, "[%llu]", (unsigned long long)w.columns)
                      : snprintf(wanted, sizeof wanted, "[%llu, %llu]", (unsigned long long)w.rows,
                                 (unsigned long long)w.columns));
        return err_set_field(why, ERR_BAD_MODEL, name, "%s: tensor %s is %s, not %s as config.json",
                             ref->file, name, model_tensor_shape(t, room), wanted);
    }
    if (!t->is_float) {
        return err_set_field(why, ERR_BAD_MODEL, name,
                             "%s: tensor %s is of type %s; F32, F16 and BF16 are supported",
                             ref->file, name, t->dtype_name);
    }
    ref->taken = true;
    w.dtype = t->dtype;
    w.data = t->data;
    c->weights[c->weight_count++] = w;
    c->bytes += t->bytes;
    return ERR_OK;
}

static enum err take_layer(struct model_checkpoint *c, const struct tensor_table *table,
                           const struct kern_shape *shape, uint32_t layer, struct err_text *why) {
    char name[128];
    const struct {
        const char *name;
        enum kern_tensor tensor;
        uint32_t columns;
    } norms[] = {{"input_layernorm", KERN_INPUT_NORM, shape->hidden},
                 {"post_attention_layernorm", KERN_POST_NORM, shape->hidden},
                 {"self_attn.q_norm", KERN_Q_NORM, shape->head_dim},
                 {"self_attn.k_norm", KERN_K_NORM, shape->head_dim}};
    for (size_t i = 0; i < (shape->qk_norm ? 4 : 2); i++) {
        struct kern_weight w = {
            .tensor = norms[i].tensor, .layer = layer, .rows = 1, .columns = norms[i].columns};
        (void)snprintf(name, sizeof name, "model.layers.%u.%s.weight", layer, norms[i].name);
        enum err e = take(c, table, name, w, why);
        if (e != ERR_OK) {
            return e;
        }
    }
    for (enum kern_module m = 0; m < KERN_MODULES; m++) {
        const char *block = m <= KERN_O ? "self_attn" : "mlp";
        struct kern_weight w = {.tensor = KERN_WEIGHT,
                                .layer = layer,
                                .module = m,
                                .rows = kern_module_out(shape, m),
                                .columns = kern_module_in(shape, m)};
        (void)snprintf(name, sizeof name, "model.layers.%u.%s.%s.weight", layer, block,
                       kern_module_name(m));
        enum err e = take(c, table, name, w, why);
        if (e == ERR_OK && shape->qkv_bias && m <= KERN_V) {
            w.tensor = KERN_BIAS;
            w.columns = w.rows;
            w.rows = 1;
            (void)snprintf(name, sizeof name, "model.layers.%u.%s.%s.bias", layer, block,
                           kern_module_name(m));
            e = take(c, table, name, w, why);
        }
        if (e != ERR_OK) {
            return e;
        }
    }
    return ERR_OK;
}

/* A head stored beside a tied embedding is its copy, or the checkpoint and its config disagree. */
static enum err check_tied_head(const struct tensor_table *table, struct tensor_ref *head,
                                struct err_text *why) {
    const struct model_tensor *embed = table_find(table, "model.embed_tokens.weight")->tensor;
    const struct model_tensor *t = head->tensor;
    if (strcmp(t->dtype_name, embed->dtype_name) != 0 || t->bytes != embed->bytes ||
        memcmp(t->data, embed->data, t->bytes) != 0) {
        return err_set_field(why, ERR_BAD_MODEL, t->name,
                             "%s: tensor %s differs from the embedding although config.json says "
                             "tie_word_embeddings",
                             head->file, t->name);
    }
    head->taken = true;
    return ERR_OK;
}

static enum err check_leftovers(const struct tensor_table *table, struct err_text *why) {
    for (size_t i = 0; i < table->count; i++) {
        const char *name = table->refs[i].tensor->name;
        size_t length = strlen(name);
        size_t suffix = strlen(".rotary_emb.inv_freq"); /* old savers kept this derived buffer */
        if (table->refs[i].taken ||
            (length > suffix && strcmp(name + length - suffix, ".rotary_emb.inv_freq") == 0)) {
            continue;
        }
        return err_set_field(why, ERR_BAD_MODEL, name,
                             "%s: tensor %s has no place in this architecture", table->refs[i].file,
                             name);
    }
    return ERR_OK;
}

static enum err take_all(struct model_checkpoint *c, const struct tensor_table *table,
                         const struct model_facts *facts, struct err_text *why) {
    const struct kern_shape *shape = &facts->shape;
    struct kern_weight matrix = {
        .tensor = KERN_EMBED, .rows = shape->vocab, .columns = shape->hidden};
    enum err e = take(c, table, "model.embed_tokens.weight", matrix, why);
    struct tensor_ref *head = table_find(table, "lm_head.weight");
    if (e == ERR_OK && !facts->tied) {
        matrix.tensor = KERN_LM_HEAD;
        e = take(c, table, "lm_head.weight", matrix, why);
    } else if (e == ERR_OK && head != NULL) {
        e = check_tied_head(table, head, why);
    }
    if (e == ERR_OK) {
        struct kern_weight norm = {.tensor = KERN_FINAL_NORM, .rows = 1, .columns = shape->hidden};
        e = take(c, table, "model.norm.weight", norm, why);
    }
    for (uint32_t layer = 0; layer < shape->layers && e == ERR_OK; layer++) {
        e = take_layer(c, table, shape, layer, why);
    }
    return e == ERR_OK ? check_leftovers(table, why) : e;
}

enum err model_checkpoint_open(struct model_checkpoint *out, int dir,
                               const struct model_facts *facts, struct err_text *why) {
    *out = (struct model_checkpoint){0};
    struct model_checkpoint c = {0};
    struct tensor_table table = {0};
    enum err e = open_files(&c, dir, why);
    if (e != ERR_OK) {
        goto out;
    }
    /* embedding, head, final norm; a layer's four norms, seven matrices and three biases */
    size_t weights_max = 3 + (size_t)facts->shape.layers * (4 + KERN_MODULES + 3);
    c.weights = calloc(weights_max, sizeof *c.weights);
    if (c.weights == NULL) {
        e = err_set(why, ERR_NO_MEMORY, "no memory for a list of %zu weights", weights_max);
        goto out;
    }
    e = table_init(&table, &c, why);
    if (e == ERR_OK) {
        e = take_all(&c, &table, facts, why);
    }
    if (e == ERR_OK) {
        CHECK(c.weight_count <= weights_max);
        *out = c;
        c = (struct model_checkpoint){0};
    }
out:
    free(table.refs);
    model_checkpoint_close(&c);
    return e;
}

enum kern_dtype model_checkpoint_dtype(const struct model_checkpoint *c) {
    uint32_t counts[KERN_BF16 + 1] = {0};
    CHECK(c->weight_count > 0);
    CHECK(c->weights[0].tensor == KERN_EMBED);
    for (uint32_t i = 0; i < c->weight_count; i++) {
        counts[c->weights[i].dtype] += c->weights[i].rows > 1; /* norms are often kept in f32 */
    }
    if (c->weights[0].dtype != KERN_F32 || counts[KERN_F16] + counts[KERN_BF16] == 0) {
        return c->weights[0].dtype;
    }
    return counts[KERN_F16] > counts[KERN_BF16] ? KERN_F16 : KERN_BF16;
}

void model_checkpoint_close(struct model_checkpoint *c) {
    for (uint32_t i = 0; i < c->shard_count; i++) {
        model_st_deinit(&c->shards[i].st);
        if (c->shards[i].map != NULL) {
            (void)munmap(c->shards[i].map, c->shards[i].bytes);
        }
    }
    free(c->shards);
    free(c->weights);
    *c = (struct model_checkpoint){0};
}

void model_checkpoint_hash(const struct model_checkpoint *c, EVP_MD_CTX *sha) {
    for (uint32_t i = 0; i < c->shard_count; i++) {
        const struct model_shard *shard = &c->shards[i];
        model_sha_part(sha, shard->name, shard->map, shard->st.header_bytes);
        for (uint32_t k = 0; k < shard->st.count; k++) {
            const struct model_tensor *t = &shard->st.tensors[k];
            model_sha_part(sha, t->name, t->data, t->bytes < 1024 ? t->bytes : 1024);
        }
    }
}
