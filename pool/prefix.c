/* prefix.c - the table of full KV pages that can be found again by their tokens.
 *
 * A page has at most one entry, kept at the page's own index. Buckets are chains through the
 * entries. What an entry stands for is compared, never only its hash: the scope, the T tokens, and
 * the name of the entry before it, which is used once and never again; so by induction all tokens
 * from the first on are the same. An entry goes when its page is taken for something else. Those
 * behind it can then no longer be found, and go in their turn, when they are the least recently
 * used; ends of prefixes are given up before beginnings, so there are few. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "pool/pool_internal.h"

_Static_assert(sizeof(struct pool_prefix_entry) == 56, "pool.h states the host's bytes a page");

enum err pool_prefix_init(struct pool *p, const struct pool_options *options) {
    p->page_tokens = options->prefix_tokens;
    if (p->page_tokens == 0) {
        return ERR_OK; /* no prefixes */
    }
    uint32_t buckets = 1;
    while (buckets < options->page_count) {
        buckets *= 2;
    }
    p->bucket_mask = buckets - 1;
    p->entries = calloc(options->page_count, sizeof *p->entries);
    p->buckets = malloc(buckets * sizeof *p->buckets);
    p->tokens = calloc(options->page_count, (size_t)p->page_tokens * sizeof *p->tokens);
    if (p->entries == NULL || p->buckets == NULL || p->tokens == NULL) {
        return ERR_NO_MEMORY; /* pool_open() closes what there is */
    }
    memset(p->buckets, 0xff, buckets * sizeof *p->buckets);
    return ERR_OK;
}

void pool_prefix_deinit(struct pool *p) {
    free(p->tokens);
    free(p->buckets);
    free(p->entries);
}

static uint64_t mix(uint64_t h, uint64_t word) {
    h = (h ^ word) * 0x9fb21c651e98df25ULL;
    return h ^ h >> 32;
}

static uint32_t bucket_of(const struct pool *p, const struct pool_prefix *key) {
    uint64_t words[sizeof key->scope->bytes / sizeof(uint64_t)];
    memcpy(words, key->scope->bytes, sizeof words);
    uint64_t h = key->before;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        h = mix(h, words[i]);
    }
    for (uint32_t i = 0; i < p->page_tokens; i++) {
        h = mix(h, key->tokens[i]);
    }
    return (uint32_t)h & p->bucket_mask;
}

static uint32_t *tokens_of(const struct pool *p, uint32_t page) {
    return p->tokens + (size_t)page * p->page_tokens;
}

static uint32_t find(const struct pool *p, const struct pool_prefix *key, uint32_t bucket) {
    uint32_t page = p->buckets[bucket];
    while (page != POOL_NO_PAGE) {
        const struct pool_prefix_entry *e = &p->entries[page];
        if (e->before == key->before &&
            memcmp(tokens_of(p, page), key->tokens, p->page_tokens * sizeof *key->tokens) == 0 &&
            memcmp(&e->scope, key->scope, sizeof e->scope) == 0) {
            break;
        }
        page = e->bucket_next;
    }
    return page;
}

uint64_t pool_prefix_find(const struct pool *p, const struct pool_prefix *key, uint32_t *page) {
    if (p->page_tokens == 0) {
        return 0;
    }
    uint32_t found = find(p, key, bucket_of(p, key));
    if (found == POOL_NO_PAGE) {
        return 0;
    }
    *page = found;
    return p->entries[found].chain;
}

uint64_t pool_prefix_enter(struct pool *p, const struct pool_prefix *key, uint32_t page) {
    CHECK(page < p->counts.pages);
    CHECK(p->pages[page].state == POOL_PAGE_KV);
    if (p->page_tokens == 0) {
        return 0;
    }
    struct pool_prefix_entry *e = &p->entries[page];
    CHECK(e->chain == 0);
    uint32_t bucket = bucket_of(p, key);
    uint32_t twin = find(p, key, bucket);
    if (twin != POOL_NO_PAGE) {
        return p->entries[twin].chain;
    }
    *e = (struct pool_prefix_entry){.chain = ++p->chains,
                                    .before = key->before,
                                    .scope = *key->scope,
                                    .bucket = bucket,
                                    .bucket_next = p->buckets[bucket]};
    memcpy(tokens_of(p, page), key->tokens, p->page_tokens * sizeof *key->tokens);
    p->buckets[bucket] = page;
    return e->chain;
}

bool pool_prefix_has(const struct pool *p, uint32_t page) {
    return p->page_tokens != 0 && p->entries[page].chain != 0;
}

void pool_prefix_forget(struct pool *p, uint32_t page) {
    struct pool_prefix_entry *e = &p->entries[page];
    CHECK(e->chain != 0);
    uint32_t *link = &p->buckets[e->bucket];
    while (*link != page) {
        CHECK(*link != POOL_NO_PAGE);
        link = &p->entries[*link].bucket_next;
    }
    *link = e->bucket_next;
    e->chain = 0;
}

void pool_prefix_check(const struct pool *p) {
    if (p->page_tokens == 0) {
        return;
    }
    uint32_t linked = 0;
    for (uint32_t bucket = 0; bucket <= p->bucket_mask; bucket++) {
        uint32_t page = p->buckets[bucket];
        for (; page != POOL_NO_PAGE; page = p->entries[page].bucket_next) {
            CHECK(page < p->counts.pages);
            const struct pool_prefix_entry *e = &p->entries[page];
            CHECK(e->chain != 0);
            CHECK(e->chain <= p->chains);
            CHECK(e->before < e->chain);
            CHECK(e->bucket == bucket);
            const struct pool_prefix key = {&e->scope, e->before, tokens_of(p, page)};
            CHECK(find(p, &key, bucket) == page); /* no twins */
            CHECK(++linked <= p->counts.pages);   /* no loops */
        }
    }
    uint32_t entries = 0;
    for (uint32_t i = 0; i < p->counts.pages; i++) {
        enum pool_page_state state = p->pages[i].state;
        bool has = p->entries[i].chain != 0;
        CHECK(!has || state == POOL_PAGE_KV || state == POOL_PAGE_PENDING ||
              state == POOL_PAGE_CACHED);
        entries += has;
    }
    CHECK(entries == linked);
}
