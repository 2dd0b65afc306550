//! Small helpers for parse trees.

use pgrx::pg_sys;
use std::ffi::{CStr, CString, c_char};
use std::ptr::null_mut;

/// The pointers in a list.
pub(crate) unsafe fn items<T>(list: *mut pg_sys::List) -> Vec<*mut T> {
    if list.is_null() {
        return Vec::new();
    }
    (0..(*list).length as usize).map(|i| (*(*list).elements.add(i)).ptr_value.cast()).collect()
}

pub(crate) unsafe fn tag(node: *mut pg_sys::Node) -> pg_sys::NodeTag {
    (*node).type_
}

/// A C string as Rust text; null is the empty text.
pub(crate) unsafe fn text(s: *const c_char) -> String {
    if s.is_null() { String::new() } else { CStr::from_ptr(s).to_string_lossy().into_owned() }
}

/// A copy that PostgreSQL owns, for frames in which nothing may need dropping.
pub(crate) unsafe fn palloc_text(s: &str) -> *mut c_char {
    let s = CString::new(s).expect("text of a statement or name has no NUL byte");
    pg_sys::pstrdup(s.as_ptr())
}

/// A zeroed node. Like makeNode, which is a macro.
pub(crate) unsafe fn make<T>(tag: pg_sys::NodeTag) -> *mut T {
    let node = pg_sys::palloc0(size_of::<T>()).cast::<pg_sys::Node>();
    (*node).type_ = tag;
    node.cast()
}

/// The string of a String node.
pub(crate) unsafe fn string(node: *mut pg_sys::Node) -> String {
    text((*node.cast::<pg_sys::String>()).sval)
}

/// The relation that a name means right now, without a lock; `None` if there is none.
pub(crate) unsafe fn resolve(name: *mut pg_sys::RangeVar) -> Option<pg_sys::Oid> {
    if name.is_null() {
        return None;
    }
    let missing_ok = pg_sys::RVROption::RVR_MISSING_OK;
    let oid = pg_sys::RangeVarGetRelidExtended(name, pg_sys::NoLock as _, missing_ok, None, null_mut());
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// The table name of `'schema.table'` as a user writes it.
pub(crate) unsafe fn parse_name(name: &str) -> *mut pg_sys::RangeVar {
    let raw = palloc_text(name);
    #[cfg(feature = "pg15")]
    let names = pg_sys::stringToQualifiedNameList(raw);
    #[cfg(not(feature = "pg15"))]
    let names = pg_sys::stringToQualifiedNameList(raw, null_mut());
    pg_sys::makeRangeVarFromNameList(names)
}

/// The name of a relation for messages.
pub(crate) unsafe fn relation_name(oid: pg_sys::Oid) -> String {
    text(pg_sys::get_rel_name(oid))
}
