//! The library of the extension `shardman`: settings, the hook on utility statements and the functions that send SQL to
//! other replication groups. Everything that plain SQL can do is in `sql/`.
//!
//! The story of one statement: `hook` sees it first; `classify` says whether it concerns all groups; `create_table`
//! rewrites `CREATE TABLE … WITH (distributed_by = …)`; PostgreSQL runs it here; `group` sends its text to every other
//! group, where the view `shardman.exec` hands it to `group::execute`.
//!
//! Every `unsafe` block calls PostgreSQL on its own thread, in a backend, with nodes and strings that PostgreSQL made.

// pgrx's module macro and the hook need C functions; the workspace forbids `unsafe` everywhere else.
#![expect(unsafe_op_in_unsafe_fn, reason = "almost every line here calls PostgreSQL")]

mod classify;
mod create_table;
mod functions;
mod group;
mod hook;
mod node;
mod report;
mod settings;

pgrx::pg_module_magic!();

/// Called by PostgreSQL when it loads the library.
#[allow(non_snake_case, reason = "the name is PostgreSQL's")]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // With RUST_BACKTRACE=1 in the server's environment, pgrx would put a backtrace into the DETAIL of users' errors.
    // Safe: a backend has one thread.
    unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    settings::define();
    hook::install();
}
