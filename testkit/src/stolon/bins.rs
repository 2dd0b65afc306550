//! Which program stands for a component.

use nix::unistd::{User, geteuid};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A component of a stolon cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `stolon-keeper`.
    Keeper,
    /// `stolon-sentinel`.
    Sentinel,
    /// `stolon-proxy`.
    Proxy,
    /// `stolonctl`.
    Ctl,
}

impl Kind {
    /// Name of the program, ours and theirs.
    pub fn program(self) -> &'static str {
        match self {
            Kind::Keeper => "stolon-keeper",
            Kind::Sentinel => "stolon-sentinel",
            Kind::Proxy => "stolon-proxy",
            Kind::Ctl => "stolonctl",
        }
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Bins {
    ours: PathBuf,
    theirs: Option<PathBuf>,
    exchanged: BTreeSet<Kind>,
    exchanged_keepers: BTreeSet<usize>,
}

impl Bins {
    /// Our programs, all in one directory.
    pub fn new(ours: impl Into<PathBuf>) -> Self {
        Bins { ours: ours.into(), theirs: None, exchanged: BTreeSet::new(), exchanged_keepers: BTreeSet::new() }
    }

    /// The directory of a program, such as `env!("CARGO_BIN_EXE_stolon-keeper")`.
    pub fn beside(program: &str) -> Self {
        Self::new(Path::new(program).parent().unwrap_or(Path::new("/")))
    }

    /// The directory that `SHARDMAN_BIN_DIR` names.
    pub fn from_env() -> Option<Self> {
        std::env::var_os("SHARDMAN_BIN_DIR").map(|dir| Self::new(PathBuf::from(dir)))
    }

    /// The directory of another stolon's programs that `STOLON_BIN_PATH` names.
    pub fn theirs_from_env() -> Option<PathBuf> {
        std::env::var_os("STOLON_BIN_PATH").filter(|dir| !dir.is_empty()).map(PathBuf::from)
    }

    /// Takes these components from another stolon.
    pub fn exchange(mut self, theirs: impl Into<PathBuf>, kinds: &[Kind]) -> Self {
        self.theirs = Some(theirs.into());
        self.exchanged.extend(kinds);
        self
    }

    /// Takes this keeper from another stolon, the others remain.
    pub fn exchange_keeper(mut self, theirs: impl Into<PathBuf>, index: usize) -> Self {
        self.theirs = Some(theirs.into());
        self.exchanged_keepers.insert(index);
        self
    }

    /// This component of another stolon.
    pub(super) fn of_theirs(theirs: &Path, kind: Kind) -> Program {
        Program { path: theirs.join(kind.program()), is_theirs: true }
    }

    /// The program of a component.
    pub(super) fn program(&self, kind: Kind, index: usize) -> Program {
        let exchanged =
            self.exchanged.contains(&kind) || kind == Kind::Keeper && self.exchanged_keepers.contains(&index);
        let theirs = self.theirs.as_ref().filter(|_| exchanged);
        Program { path: theirs.unwrap_or(&self.ours).join(kind.program()), is_theirs: theirs.is_some() }
    }
}

/// A program that can be run.
#[derive(Clone, Debug)]
pub(super) struct Program {
    path: PathBuf,
    /// It is another stolon's, which may know fewer flags than ours.
    pub(super) is_theirs: bool,
}

impl Program {
    /// A command that runs it.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        // PostgreSQL refuses root. Our programs change the user by themselves, Go's don't.
        if self.is_theirs
            && let Some(user) = server_user()
        {
            use std::os::unix::process::CommandExt as _;
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }
}

/// The user that PostgreSQL runs as when we are root.
pub(super) fn server_user() -> Option<User> {
    if geteuid().is_root() { User::from_name("postgres").ok().flatten() } else { None }
}
