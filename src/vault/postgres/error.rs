//! What can go wrong, sorted by what is to be done about it.

use tokio_postgres::error::{DbError, Severity, SqlState};

/// Why the database did not do what it was asked. Where it is an answer to a commit, that commit was not made, and never
/// will be. The texts are for operators and hold no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PostgresError {
    /// What was configured cannot be used.
    #[error("vault.postgres: {0}")]
    Settings(String),
    /// It cannot be reached, or the connection ended.
    #[error("the database cannot be reached: {0}")]
    Away(String),
    /// It did not answer in time.
    #[error("the database did not answer in time")]
    Slow,
    /// The server is a standby, or read-only.
    #[error(
        "the database's server is not the primary; name every server in `url`, or an address that leads to the primary"
    )]
    NotPrimary,
    /// A record was not of the version that it was expected to be: it is to be read again.
    #[error("a record was changed by another replica")]
    Conflict,
    /// A record has a later version than the one that was to be written: it is to be written under a later one.
    #[error("a record was written under a later number by another replica")]
    Behind,
    /// The vault's keys were changed: they are to be read again.
    #[error("the vault's keys were changed by another replica")]
    KeysChanged,
    /// A vault is being moved here, and none is made in its place.
    #[error(
        "a vault is being moved here, and has not come yet: finish that with the same `consentry vault move`, or give it up with \
         --give-up"
    )]
    Arriving,
    /// The claim is another's by now.
    #[error("the claim was taken over by another replica")]
    Fenced,
    /// Rows are locked for too long, or two transactions waited for each other: to be tried again.
    #[error("the database is busy ({0})")]
    Busy(String),
    /// No standby has to confirm commits.
    #[error(
        "the database confirms commits alone, and would lose the latest with its server; set `synchronous_standby_names`, or \
         accept the loss of credentials with `allow_asynchronous = true`"
    )]
    Asynchronous,
    /// The database does not keep what it confirms.
    #[error("the database's setting {setting} is {value}: it does not keep what it confirms")]
    Unsafe {
        /// The setting's name.
        setting: &'static str,
        /// Its value.
        value: String,
    },
    /// The schema was made by a newer version of this program.
    #[error("the database's schema has version {found}, and this version of consentry knows versions up to {known}")]
    Newer {
        /// The version it has.
        found: i32,
        /// The newest version this program knows.
        known: i32,
    },
    /// The database does not know this process any more.
    #[error("this worker has written nothing for so long that the database forgot it; restart it")]
    Forgotten,
    /// What was confirmed before is not there.
    #[error(
        "the database went back to an earlier state: a commit that it confirmed is missing; tokens in it may be spent. \
         Stop all workers, and accept what is there with `consentry restore --in-place`"
    )]
    WentBack,
    /// A batch that makes no sense, or is larger than is taken.
    #[error("a batch of changes cannot be committed: {0}")]
    Batch(&'static str),
    /// Anything else that it said.
    #[error("the database failed: {0}")]
    Failed(String),
}

impl PostgresError {
    /// Of an error that a statement or a connection ended with.
    pub(super) fn of(error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(said) => Self::said(said),
            None => Self::Away(words(error)),
        }
    }

    fn said(said: &DbError) -> Self {
        if is_of_connection(said.code()) {
            return Self::Away(said.message().to_owned());
        }
        match said.code().code() {
            "CV001" => Self::Asynchronous,
            "CV002" => Self::Forgotten,
            "CV003" => Self::Fenced,
            // A unique violation: two made the same record, or anything else, at once.
            "CV004" | "23505" => Self::Conflict,
            "CV005" => Self::WentBack,
            "CV006" => Self::Behind,
            "CV007" => Self::KeysChanged,
            "CV008" => Self::Arriving,
            // Writing in a read-only transaction; asking a standby for its own position.
            "25006" | "55000" => Self::NotPrimary,
            "40001" | "40P01" | "55P03" => Self::Busy(said.message().to_owned()),
            _ => Self::Failed(format!("{} (SQLSTATE {})", said.message(), said.code().code())),
        }
    }
}

/// Whether an error proves that its transaction was not committed: the server's own word about the statement, and not about
/// the connection, which may end after the commit.
pub(super) fn proves_not_done(said: &DbError) -> bool {
    said.parsed_severity() == Some(Severity::Error) && !is_of_connection(said.code())
}

/// Connection exceptions, and those of an operator who stops the server or its connections.
fn is_of_connection(code: &SqlState) -> bool {
    code.code().starts_with("08") || code.code().starts_with("57P")
}

/// An error and what it came from. tokio-postgres puts no parameter and no password into its texts.
pub(super) fn words(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
