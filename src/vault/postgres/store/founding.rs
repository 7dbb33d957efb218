//! Opening the vault: its keys, which whoever comes first makes, and which are read again when another process has changed them.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU64},
    },
};

use tokio::sync::mpsc;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        Parameters, Postgres, Settings, cell,
        commit::{Fate, ask},
        connection::take,
        version,
    },
    Followed, Inner, Keys, Store,
};
use crate::{
    clock::SharedClock,
    config::place_of,
    metrics::Metrics,
    vault::{
        Identity, VaultError, VaultStats,
        cipher::Cipher,
        codec::{Encoder, Meta, Record},
        derived::Derived,
        keyring::{Keyring, parse_listed},
        name::{Kind, Name, Namer},
        open::META_ID,
        postgres::PostgresError,
        recipients::Recipient,
    },
};

/// Where the numbers of records begin: anywhere, so that a record that is made again long after its deletion was forgotten is hardly
/// taken for the old one.
pub(super) const FIRST_NUMBERS: std::ops::Range<u64> = 1..1 << 40;
/// How often a change of the keys is tried when others change them at the same time.
const TRIES: usize = 10;

/// The one row of the table `vault`.
pub(super) struct Row {
    version: u64,
    keyring: Vec<u8>,
    recipients: Vec<String>,
    /// Why the vault must not be used.
    unusable: Option<String>,
}

impl Store {
    /// Opens the vault that the settings lead to; makes one that `identity` and `recipients` open, if there is none. It has to be called
    /// within a Tokio runtime, which what the store does in the background then runs on.
    pub async fn open(
        settings: &Settings,
        identity: &Identity,
        recipients: &[String],
        clock: SharedClock,
        metrics: Metrics,
    ) -> Result<Self, VaultError> {
        let postgres = Postgres::connect(settings).await?;
        let row = match read_row(&postgres).await? {
            Some(row) => row,
            None => found(&postgres, identity, recipients).await?,
        };
        let (row, keyring, meta) = open_whole(&postgres, row, identity, settings).await?;
        // A commit: from here on what was read is on the standbys, too.
        postgres.enlist().await?;
        let (namer, cipher) = tools(&keyring);
        let (release, released) = mpsc::unbounded_channel();
        let followed = Followed::from(&postgres.news().await?, clock.boot());
        let ending = CancellationToken::new();
        let inner = Arc::new(Inner {
            lease: settings.lease,
            poll: settings.poll,
            clock,
            metrics,
            identity: identity.file().to_owned(),
            own: identity.recipients().map(|own| own.to_string()).collect(),
            place: place(settings),
            derived: Derived::of(&keyring.fingerprint_key),
            keys: RwLock::new(Keys { keyring, version: row.version }),
            cipher,
            namer,
            meta,
            encoder: Mutex::new(Encoder::new()),
            highest: AtomicU64::new(fastrand::u64(FIRST_NUMBERS)),
            holds: Mutex::default(),
            date_by: RwLock::default(),
            release,
            followed: Mutex::new(followed),
            stats: Mutex::new(VaultStats { records: 0, bytes: 0, strays: 0, data_key: 0 }),
            rekeying: Mutex::default(),
            rekey_wanted: Arc::default(),
            _at_its_end: ending.clone().drop_guard(),
            ending,
            backing_up: tokio::sync::Mutex::default(),
            last_backup: AtomicI64::new(0),
            over: OnceLock::new(),
            postgres,
        });
        inner.count().await?;
        inner.look_for_backups().await?;
        inner.work_in_background(released);
        Ok(Self(inner))
    }

    /// Makes a vault that `identity` and `recipients` open, unless one is there; gives whether one was.
    pub async fn create(settings: &Settings, identity: &Identity, recipients: &[String]) -> Result<bool, VaultError> {
        let postgres = Postgres::connect(settings).await?;
        let was_there = read_row(&postgres).await?;
        let is_there = was_there.is_some();
        let row = match was_there {
            Some(row) => row,
            None => found(&postgres, identity, recipients).await?,
        };
        open_row(&row, identity, settings)?;
        Ok(is_there)
    }

    /// Lets the owner of this public key open the vault, durably; gives all who then can, and whether that changed anything.
    pub async fn add_recipient(&self, recipient: &str) -> Result<(Vec<Recipient>, bool), VaultError> {
        let changed = self.0.change_keys(|keyring| keyring.add_recipient(recipient)).await?;
        Ok((self.recipients(), changed))
    }

    /// Keeps the owner of this public key from opening the vault as it is from now on, durably; gives all who still can.
    pub async fn remove_recipient(&self, recipient: &str) -> Result<Vec<Recipient>, VaultError> {
        self.0.change_keys(|keyring| keyring.remove_recipient(recipient, &self.0.own).map(|()| true)).await?;
        Ok(self.recipients())
    }
}

impl Inner {
    /// Reads the keys again, since another process has changed them.
    pub(super) async fn read_keys_again(&self) -> Result<(), VaultError> {
        let row = read_row(&self.postgres).await?.ok_or_else(missing)?;
        if let Some(why) = row.unusable {
            return Err(VaultError::Unusable { detail: why });
        }
        if row.version == self.keys.read().unwrap_or_else(PoisonError::into_inner).version {
            return Ok(());
        }
        let identity = Identity::read(&self.identity)?;
        let keyring = Keyring::open(&row.keyring, &identity, &row.recipients, &self.place)?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys.version < row.version {
            self.cipher.use_keys(keyring.data_keys.clone(), keyring.current);
            *keys = Keys { keyring, version: row.version };
            // There may be something to seal anew, or nothing any more.
            self.rekey_wanted.notify_one();
        }
        Ok(())
    }

    /// Changes the keyring, if `change` says that it did, and puts it in the place of the one that it was read from.
    pub(super) async fn change_keys(
        &self,
        change: impl Fn(&mut Keyring) -> Result<bool, VaultError>,
    ) -> Result<bool, VaultError> {
        for _ in 0..TRIES {
            self.read_keys_again().await?;
            let (mut keyring, version) = {
                let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
                (keys.keyring.clone(), keys.version)
            };
            if !change(&mut keyring)? {
                return Ok(false);
            }
            match put_keyring(&self.postgres, &keyring, version).await {
                Err(PostgresError::Conflict) => {}
                put => {
                    put?;
                    self.read_keys_again().await?;
                    return Ok(true);
                }
            }
        }
        Err(VaultError::Conflict)
    }

    /// The version of the keys that are sealed under.
    pub(super) fn keys_version(&self) -> u64 {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).version
    }
}

/// Opens the keyring of a vault that may be used.
pub(super) fn open_row(row: &Row, identity: &Identity, settings: &Settings) -> Result<Keyring, VaultError> {
    if let Some(why) = &row.unusable {
        return Err(VaultError::Unusable { detail: why.clone() });
    }
    Keyring::open(&row.keyring, identity, &row.recipients, &place(settings))
}

/// Opens the keyring, and what the vault keeps about itself, which may have been sealed under other keys since those were read.
async fn open_whole(
    postgres: &Postgres,
    mut row: Row,
    identity: &Identity,
    settings: &Settings,
) -> Result<(Row, Keyring, Meta), VaultError> {
    loop {
        let keyring = open_row(&row, identity, settings)?;
        let (namer, cipher) = tools(&keyring);
        match read_meta(postgres, &namer, &cipher).await {
            Ok(meta) => return Ok((row, keyring, meta)),
            Err(error) => {
                let now = read_row(postgres).await?.ok_or_else(missing)?;
                if now.version == row.version {
                    return Err(error);
                }
                row = now;
            }
        }
    }
}

/// Where the vault is, for errors that name a folder where there is one.
fn place(settings: &Settings) -> PathBuf {
    place_of(&settings.schema)
}

/// The keys of the vault in that database, whether it may be used or not.
pub(in crate::vault) async fn read_keyring(
    postgres: &Postgres,
    settings: &Settings,
    identity: &Identity,
) -> Result<Keyring, VaultError> {
    let place = place(settings);
    let row = read_row(postgres).await?.ok_or_else(|| VaultError::Missing { path: place.clone() })?;
    Keyring::open(&row.keyring, identity, &row.recipients, &place)
}

/// What names and seals by a keyring.
pub(super) fn tools(keyring: &Keyring) -> (Namer, Cipher) {
    let cipher = Cipher::new(keyring.vault, keyring.data_keys.clone(), keyring.current);
    (Namer::new(&keyring.name_key), cipher)
}

fn missing() -> VaultError {
    VaultError::Damaged { what: "its keyring", detail: "it is missing".to_owned() }
}

pub(super) async fn read_row(postgres: &Postgres) -> Result<Option<Row>, VaultError> {
    let rows = postgres.0.query(&postgres.0.sql.keys, &[]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let recipients: String = cell(row, 2)?;
    Ok(Some(Row {
        version: version(cell(row, 0)?)?,
        keyring: cell(row, 1)?,
        recipients: parse_listed(&recipients),
        unusable: cell(row, 3)?,
    }))
}

/// Makes a vault, and gives what is there then: it may be another's, who was quicker.
async fn found(postgres: &Postgres, identity: &Identity, recipients: &[String]) -> Result<Row, VaultError> {
    let mut keyring = Keyring::generate()?;
    keyring.set_recipients(identity, recipients)?;
    let (namer, cipher) = tools(&keyring);
    let (name, number) = (namer.name(Kind::Meta, META_ID), fastrand::u64(FIRST_NUMBERS));
    let sealed = Encoder::new().encode(&Meta::NEW, |plaintext| cipher.seal(&name, number, plaintext))?;
    let (keyring, listed, number) = (keyring.encrypt()?, keyring.recipients_text(), signed(number));
    let parameters: Parameters<'_> = &[
        (&keyring, Type::BYTEA),
        (&listed, Type::TEXT),
        (&&name.as_bytes()[..], Type::BYTEA),
        (&number, Type::INT8),
        (&sealed, Type::BYTEA),
        (&postgres.0.allow_asynchronous, Type::BOOL),
    ];
    let connection = take(&postgres.0.pool).await?;
    match ask(&connection, &postgres.0.sql.found, parameters).await.0 {
        // Two at once: one of them finds the other's.
        Fate::Done | Fate::NotDone(PostgresError::Conflict) => {}
        Fate::NotDone(error) => return Err(error.into()),
        // Whoever tries again finds it, or makes one.
        Fate::Unknown(detail) => return Err(VaultError::Away { detail }),
    }
    drop(connection);
    read_row(postgres).await?.ok_or_else(missing)
}

async fn put_keyring(postgres: &Postgres, keyring: &Keyring, version: u64) -> Result<(), PostgresError> {
    let sealed = keyring.encrypt().map_err(|error| PostgresError::Failed(error.to_string()))?;
    let (listed, version) = (keyring.recipients_text(), signed(version));
    let parameters: Parameters<'_> = &[
        (&version, Type::INT8),
        (&sealed, Type::BYTEA),
        (&listed, Type::TEXT),
        (&postgres.0.allow_asynchronous, Type::BOOL),
    ];
    let connection = take(&postgres.0.pool).await?;
    match ask(&connection, &postgres.0.sql.put_keys, parameters).await.0 {
        Fate::Done => Ok(()),
        Fate::NotDone(error) => Err(error),
        // Whoever asked looks at what is there and tries again; to do it twice is nothing.
        Fate::Unknown(why) => Err(PostgresError::Away(why)),
    }
}

/// What the vault keeps about itself.
async fn read_meta(postgres: &Postgres, namer: &Namer, cipher: &Cipher) -> Result<Meta, VaultError> {
    let name: Name = namer.name(Kind::Meta, META_ID);
    let sealed = postgres.read(&[name]).await?.pop().and_then(|found| found.sealed);
    let sealed =
        sealed.ok_or_else(|| VaultError::Damaged { what: Kind::Meta.word(), detail: "it is missing".to_owned() })?;
    Meta::read(&cipher.open(&name, sealed)?.plaintext)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
