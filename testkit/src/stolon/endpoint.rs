//! SQL sessions to a keeper's PostgreSQL or through a proxy.

use super::{LIMIT, PAUSE};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

/// How long one attempt to connect, or one statement, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A place that speaks PostgreSQL's protocol, with the superuser's credentials.
#[derive(Debug)]
pub struct Endpoint {
    port: AtomicU16,
    user: &'static str,
    password: Option<&'static str>,
}

impl Endpoint {
    pub(super) fn new(port: u16, user: &'static str, password: Option<&'static str>) -> Self {
        Endpoint { port: AtomicU16::new(port), user, password }
    }

    pub(super) fn set_port(&self, port: u16) {
        self.port.store(port, Ordering::Relaxed);
    }

    /// TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.load(Ordering::Relaxed)
    }

    /// For own connections: the superuser, database `postgres`, one attempt of 5 s.
    pub fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port()).user(self.user).dbname("postgres").connect_timeout(PATIENCE);
        if let Some(password) = self.password {
            config.password(password);
        }
        config
    }

    /// One attempt to connect as the superuser.
    ///
    /// # Errors
    /// Nobody answers, or refuses; `None` when the time is up.
    pub async fn try_connect(&self) -> Result<Client, Option<Error>> {
        self.try_connect_as(&self.config()).await
    }

    /// One attempt to connect with other credentials or parameters.
    ///
    /// # Errors
    /// Nobody answers, or refuses; `None` when the time is up.
    pub async fn try_connect_as(&self, config: &tokio_postgres::Config) -> Result<Client, Option<Error>> {
        let (client, connection) =
            tokio::time::timeout(PATIENCE, config.connect(NoTls)).await.map_err(|_| None)?.map_err(Some)?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// A session, as soon as there is one.
    ///
    /// # Panics
    /// There is none within the limit.
    pub async fn connect(&self) -> Client {
        let started = Instant::now();
        loop {
            match self.try_connect().await {
                Ok(client) => return client,
                Err(error) => assert!(started.elapsed() < LIMIT, "no session at port {}: {error:?}", self.port()),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Runs statements once, in a session of their own; gives the first column of the last row, or nothing.
    ///
    /// # Errors
    /// No session, or the statement fails; `None` when the time is up.
    pub async fn try_one(&self, sql: &str) -> Result<String, Option<Error>> {
        let client = self.try_connect().await?;
        let messages =
            tokio::time::timeout(PATIENCE, client.simple_query(sql)).await.map_err(|_| None)?.map_err(Some)?;
        let last = messages.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        });
        Ok(last.unwrap_or_default())
    }

    /// True if statements that write were confirmed within the time given: false while commits wait or nobody answers.
    ///
    /// # Panics
    /// They fail for another reason than a lost session.
    pub async fn confirms(&self, sql: &str, time: Duration) -> bool {
        match tokio::time::timeout(time, self.try_one(sql)).await {
            Ok(Err(Some(error))) if error.as_db_error().is_some_and(|error| !error.code().code().starts_with("57")) => {
                panic!("{sql} at port {}: {error}", self.port())
            }
            outcome => matches!(outcome, Ok(Ok(_))),
        }
    }

    /// As [`Endpoint::try_one`], again and again until it succeeds: for statements that may run twice.
    ///
    /// # Panics
    /// It does not succeed within the limit.
    pub async fn one(&self, sql: &str) -> String {
        let started = Instant::now();
        loop {
            match self.try_one(sql).await {
                Ok(value) => return value,
                Err(error) => {
                    assert!(started.elapsed() < LIMIT, "{sql} at port {}: {error:?}", self.port());
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits until a statement gives this value.
    ///
    /// # Panics
    /// It does not within the limit.
    pub async fn wait_for(&self, sql: &str, wanted: &str) {
        let started = Instant::now();
        loop {
            let value = self.try_one(sql).await;
            if value.as_ref().is_ok_and(|value| value == wanted) {
                return;
            }
            assert!(started.elapsed() < LIMIT, "{sql} at port {}: {value:?} instead of {wanted}", self.port());
            tokio::time::sleep(PAUSE).await;
        }
    }
}
