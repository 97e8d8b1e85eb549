/* revisions.h - a file in state.dir that says what adapters' files were hashed to, so that a worker
 * that starts anew need not hash them again.
 *
 * A line a hash, appended by whoever made it; several workers may share the file. A line is
 *   check root id device inode bytes changed_ns revision
 * with check and root as 16 hex digits: FNV-1a over the rest of the line, and of the root's path. A
 * line that is not whole is passed over: the hash is made again. What a later line says of an id
 * counts. The file is begun anew when it has grown large.
 *
 * Whoever can write to state.dir can lie about revisions: it is the operator's own. */
#ifndef LORRY_WORKER_REVISIONS_H
#define LORRY_WORKER_REVISIONS_H

#include "model/model.h"

struct revisions;

/* Opens or makes `dir`/revisions and tells what is in it of adapters below `root`, in the order of
 * the lines. What cannot be done is logged, and nothing is kept then. ERR_NO_MEMORY. */
NODISCARD enum err revisions_open(struct revisions **out, const char *dir, const char *root,
                                  void (*each)(void *context, const char *id,
                                               const struct model_adapter_known *known),
                                  void *context);
void revisions_close(struct revisions *r); /* NULL is fine */

/* Adds a line. Thread: any; one write(2), of which it does not wait for the disk. */
void revisions_add(const struct revisions *r, const char *id,
                   const struct model_adapter_known *known);

#endif
