/* device.c - which device a process uses. */
#include <string.h>

#include "base/check.h"
#include "kernels/kernels.h"

#ifdef LORRY_CUDA
static const struct kern_ops *cuda_find(struct err_text *why) {
    return kern_cuda_present(why) ? kern_cuda() : NULL;
}
#else
static const struct kern_ops *cuda_find(struct err_text *why) {
    (void)err_set_field(why, ERR_BAD_CONFIG, "device.kind",
                        "this build has no CUDA device; use cpu or auto");
    return NULL;
}
#endif

const struct kern_ops *kern_find(const char *kind, struct err_text *why) {
    bool either = strcmp(kind, "auto") == 0;
    CHECK(either || strcmp(kind, "cuda") == 0 || strcmp(kind, "cpu") == 0);
    const struct kern_ops *cuda = NULL;
    if (either || strcmp(kind, "cuda") == 0) {
        struct err_text absent = {0};
        cuda = cuda_find(&absent);
        if (cuda == NULL && !either) {
            (void)err_set_field(why, ERR_BAD_CONFIG, "device.kind", "%s", absent.message);
            return NULL;
        }
    }
    return cuda != NULL ? cuda : kern_cpu();
}
