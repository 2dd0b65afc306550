//! One endpoint of etcd, with a login where etcd asks for one.

use super::failure::Failure;
use etcd_client as etcd;
use std::path::PathBuf;
use tokio::sync::Mutex;

/// Who we are to etcd. The password is read from its file at each login.
pub(super) struct Login {
    user: String,
    password_file: PathBuf,
    /// A token is there, or none is needed. Held during a login, so that one is enough for all who wait.
    done: Mutex<bool>,
}

impl Login {
    pub(super) fn new(user: String, password_file: PathBuf) -> Self {
        Login { user, password_file, done: Mutex::new(false) }
    }

    fn password(&self) -> Result<String, Failure> {
        let file = self.password_file.display();
        let text = std::fs::read_to_string(&self.password_file)
            .map_err(|error| Failure::Refused(format!("can't read the store's password file {file}: {error}")))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(Failure::Refused(format!("the store's password file {file} is empty")));
        }
        Ok(password.to_owned())
    }
}

/// One endpoint.
pub(super) struct Member {
    pub(super) url: String,
    client: etcd::Client,
    login: Option<Login>,
}

impl Member {
    pub(super) fn new(url: String, client: etcd::Client, login: Option<Login>) -> Self {
        Member { url, client, login }
    }

    /// Sends a request, after a login where one is needed. An expired token is renewed by the client; what it does
    /// not see by itself (etcd's users changed, or it asks for a login only since now) is told before anything is
    /// done, so that the request may be sent again.
    pub(super) async fn run<T, F>(&self, request: &impl Fn(etcd::Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd::Error>>,
    {
        self.log_in().await?;
        match request(self.client.clone()).await {
            Err(error) if wants_login(&error) && self.log_out().await => {
                self.log_in().await?;
                Ok(request(self.client.clone()).await?)
            }
            result => Ok(result?),
        }
    }

    async fn log_in(&self) -> Result<(), Failure> {
        let Some(login) = &self.login else { return Ok(()) };
        let mut done = login.done.lock().await;
        if *done {
            return Ok(());
        }
        let credentials = (login.user.clone(), login.password()?);
        match self.client.clone().update_user(Some(credentials)).await {
            Ok(()) => {}
            // Without authentication everybody may do everything. Should it be switched on, a request will say so.
            Err(error) if says(&error, "authentication is not enabled") => {}
            Err(error) => return Err(error.into()),
        }
        *done = true;
        Ok(())
    }

    /// Forgets the login; false if there is none to be had.
    async fn log_out(&self) -> bool {
        let Some(login) = &self.login else { return false };
        *login.done.lock().await = false;
        true
    }
}

fn wants_login(error: &etcd::Error) -> bool {
    const REASONS: [&str; 4] =
        ["user name is empty", "revision of auth store is old", "authentication failed", "invalid auth token"];
    REASONS.iter().any(|reason| says(error, reason))
}

fn says(error: &etcd::Error, text: &str) -> bool {
    matches!(error, etcd::Error::GRpcStatus(status) if status.message().contains(text))
}
