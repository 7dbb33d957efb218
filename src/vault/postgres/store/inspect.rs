//! What `check` says of a database: looked at, and not changed.

use std::time::Duration;

use super::{
    super::{MAX_READS, Postgres, PostgresError, Settings, cell, quoted},
    Store,
    founding::{open_row, read_row, tools},
};
use crate::{
    clock::SharedClock,
    vault::{
        Identity, VaultError,
        name::Kind,
        open::check_record,
        recipients::{self, Recipient},
    },
};

/// How often the way to the database is measured; the shortest counts.
const MEASURED: usize = 5;

/// What was found.
#[derive(Clone, Debug)]
pub struct DatabaseInspection {
    /// The server's version, as it says it.
    pub server: String,
    /// Which standbys have to confirm commits, as configured there; empty: none.
    pub synchronous_standbys: String,
    /// How many standbys are connected.
    pub standbys: u64,
    /// Settings that lose what is confirmed, or do not notice what was lost: name and value.
    pub unsafe_settings: Vec<(String, String)>,
    /// How long the server takes to answer, once connected.
    pub latency: Duration,
    /// The version of the schema; `None`: there is none yet.
    pub schema: Option<i32>,
    /// How many processes have written within the last hour.
    pub replicas: u64,
    /// The vault; `None`: there is none yet.
    pub vault: Option<InspectedVault>,
}

/// The vault that was found in a database.
#[derive(Clone, Debug)]
pub struct InspectedVault {
    /// Records in it.
    pub records: u64,
    /// Who can open it.
    pub recipients: Vec<Recipient>,
    /// How many data keys it has.
    pub data_keys: usize,
}

impl Store {
    /// Looks at the database and the vault in it, and changes nothing. `every_record`: opens them all; else they are counted.
    pub async fn inspect(
        settings: &Settings,
        identity: &Identity,
        clock: &SharedClock,
        every_record: bool,
    ) -> Result<DatabaseInspection, VaultError> {
        let postgres = Postgres::reach(settings)?;
        let mut found = look(&postgres, clock).await?;
        found.schema = postgres.schema_version(&quoted(&settings.schema)?).await?;
        if found.schema.is_some() {
            found.replicas = replicas(&postgres, settings).await?;
            found.vault = inspect_vault(&postgres, settings, identity, every_record).await?;
        }
        Ok(found)
    }
}

/// What the server says of itself.
async fn look(postgres: &Postgres, clock: &SharedClock) -> Result<DatabaseInspection, VaultError> {
    const SETTINGS: [&str; 3] = ["fsync", "full_page_writes", "data_checksums"];
    let select = "SELECT current_setting('server_version'), current_setting('synchronous_standby_names'), \
        (SELECT count(*) FROM pg_stat_replication), \
        current_setting('fsync'), current_setting('full_page_writes'), current_setting('data_checksums')";
    let rows = postgres.0.query(select, &[]).await?;
    let row = rows.first().ok_or_else(|| PostgresError::Failed("it told no settings".to_owned()))?;
    let mut unsafe_settings = Vec::new();
    for (column, setting) in (3..).zip(SETTINGS) {
        let value: String = cell(row, column)?;
        if value == "off" {
            unsafe_settings.push((setting.to_owned(), value));
        }
    }
    let mut latency = Duration::MAX;
    for _ in 0..MEASURED {
        let asked = clock.boot();
        postgres.0.query("SELECT 1", &[]).await?;
        latency = latency.min(clock.boot().saturating_sub(asked));
    }
    Ok(DatabaseInspection {
        server: cell(row, 0)?,
        synchronous_standbys: cell(row, 1)?,
        standbys: u64::try_from(cell::<i64>(row, 2)?).unwrap_or(0),
        unsafe_settings,
        latency,
        schema: None,
        replicas: 0,
        vault: None,
    })
}

async fn replicas(postgres: &Postgres, settings: &Settings) -> Result<u64, VaultError> {
    let schema = quoted(&settings.schema)?;
    let select = format!(
        "SELECT count(DISTINCT replica) FROM {schema}.writers WHERE last > 0 AND seen > clock_timestamp() - interval '1 hour'"
    );
    let rows = postgres.0.query(&select, &[]).await?;
    let count = rows.first().map_or(Ok(0), |row| cell::<i64>(row, 0))?;
    Ok(u64::try_from(count).unwrap_or(0))
}

async fn inspect_vault(
    postgres: &Postgres,
    settings: &Settings,
    identity: &Identity,
    every_record: bool,
) -> Result<Option<InspectedVault>, VaultError> {
    let Some(row) = read_row(postgres).await? else { return Ok(None) };
    let keyring = open_row(&row, identity, settings)?;
    let own: Vec<String> = identity.recipients().map(|own| own.to_string()).collect();
    let (_, cipher) = tools(&keyring);
    let mut records = 0;
    if every_record {
        let mut after = Vec::new();
        loop {
            let page = postgres.scan(&after, &[u8::MAX], MAX_READS).await?;
            let is_last = page.len() < MAX_READS;
            for found in page {
                after = found.name.as_bytes().to_vec();
                if let Some(sealed) = found.sealed {
                    check_record(&cipher, &found.name, sealed)?;
                    records += u64::from(found.name.kind() != Kind::Meta);
                }
            }
            if is_last {
                break;
            }
        }
    } else {
        records = postgres.count().await?.0;
    }
    let recipients = recipients::of(&keyring, &own);
    Ok(Some(InspectedVault { records, recipients, data_keys: keyring.data_keys.len() }))
}
