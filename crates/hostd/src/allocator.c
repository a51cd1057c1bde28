/* How jemalloc is set up in this program (jemalloc(3), TUNING): for a daemon that holds much and allocates
 * little. One arena and no caches of threads, as each would keep free memory of its own; and what is free goes
 * back to the system at once. jemalloc looks for this name when it begins. */
const char *_rjem_malloc_conf =
    "narenas:1,tcache:false,dirty_decay_ms:0,muzzy_decay_ms:0,abort_conf:true";
