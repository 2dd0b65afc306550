//! Settings (GUCs), and whether the library was loaded early enough to see every statement.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys;
use std::ffi::CStr;

static RGID: GucSetting<i32> = GucSetting::<i32>::new(-1);
static BROADCAST_UTILITY: GucSetting<bool> = GucSetting::<bool>::new(true);
static NUM_PARTS: GucSetting<i32> = GucSetting::<i32>::new(20);

pub(crate) fn define() {
    GucRegistry::define_int_guc(
        c"shardman.rgid",
        c"Id of the replication group of this server.",
        c"-1: not part of a cluster, nothing is broadcast.",
        &RGID,
        -1,
        4096,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"shardman.broadcast_utility",
        c"Send schema changes to all replication groups.",
        c"",
        &BROADCAST_UTILITY,
        GucContext::Userset,
        GucFlags::default(),
    );
    // The highest number of partitions is what still plans in bearable time; PostgreSQL itself knows no limit.
    GucRegistry::define_int_guc(
        c"shardman.num_parts",
        c"Number of partitions of a sharded table that does not say one.",
        c"",
        &NUM_PARTS,
        1,
        65536,
        GucContext::Userset,
        GucFlags::default(),
    );
    unsafe { pg_sys::MarkGUCPrefixReserved(c"shardman".as_ptr()) }
}

/// The configured group, if this server belongs to a cluster.
pub(crate) fn rgid() -> Option<i32> {
    Some(RGID.get()).filter(|id| *id != -1)
}

pub(crate) fn broadcast_utility() -> bool {
    BROADCAST_UTILITY.get()
}

/// A session that another server opened to do its part of a statement there: it must not send the statement on.
pub(crate) fn is_participant() -> bool {
    let name = unsafe { pg_sys::application_name };
    if name.is_null() {
        return false;
    }
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    name.windows(12).any(|w| w == b"postgres_fdw") || name.windows(6).any(|w| w == b"pgfdw:")
}
