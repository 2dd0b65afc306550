//! A transient PostgreSQL.
