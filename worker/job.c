#include "worker/job.h"

#include <stdlib.h>
#include <string.h>

void job_reset(struct job *job, uint32_t index) {
    wire_job_deinit(&job->wire);
    text_stream_close(job->decoder);
    free(job->prompt);
    free(job->output);
    free(job->logprobs);
    free(job->top);
    free(job->text);
    memset(job, 0, sizeof *job);
    job->index = index;
    job->tag_final = (struct job_tag){.job = job, .dead = false};
    job->tag_dead = (struct job_tag){.job = job, .dead = true};
    job->deadline_ms = INT64_MAX;
    job->device_slot = JOB_NONE;
    job->kept = UINT32_MAX;
}
