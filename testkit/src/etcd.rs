//! A transient etcd.
