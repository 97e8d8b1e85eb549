#include "tools/settled.h"

#include <stdlib.h>

#include "base/check.h"

static struct settled_job *job_of(const struct settled *s, uint64_t number) {
    CHECK(number >= s->first && number < s->next);
    return &s->jobs[number & (s->room - 1)];
}

static bool grow(struct settled *s) {
    uint64_t room = s->room > 0 ? s->room * 2 : 1024;
    struct settled_job *jobs = malloc(room * sizeof *jobs);
    if (jobs == NULL) {
        return false;
    }
    for (uint64_t i = s->first; i < s->next; i++) {
        jobs[i & (room - 1)] = *job_of(s, i);
    }
    free(s->jobs);
    s->jobs = jobs;
    s->room = room;
    return true;
}

enum err settled_send(struct settled *s, uint64_t line, uint64_t *number) {
    if (s->next - s->first == s->room && !grow(s)) {
        return ERR_NO_MEMORY;
    }
    *number = s->next++;
    *job_of(s, *number) = (struct settled_job){.line = line};
    if (*number == s->first) {
        s->lines = line; /* what came before is done, or was no job */
    }
    return ERR_OK;
}

uint64_t settled_line(const struct settled *s, uint64_t number) {
    return job_of(s, number)->line;
}

void settled_done(struct settled *s, uint64_t number) {
    job_of(s, number)->done = true;
    while (s->first < s->next && job_of(s, s->first)->done) {
        s->lines = job_of(s, s->first)->line + 1;
        s->count++;
        s->first++;
    }
    if (s->first < s->next) {
        s->lines = job_of(s, s->first)->line;
    }
}

void settled_deinit(struct settled *s) {
    free(s->jobs);
    *s = (struct settled){0};
}
