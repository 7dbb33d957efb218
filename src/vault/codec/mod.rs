//! Records as bytes: one version byte, then postcard's encoding of the forms in [`forms`].
//!
//! The model's types cannot be serialized by accident; here, and nowhere else, secrets leave their type to be sealed.
//! Encoding goes into a buffer that does not grow and is wiped; decoding borrows from the wiped plaintext, so that no
//! copy of a secret is made but the [`Secret`](crate::model::Secret) itself.
//!
//! A form is never changed once it was released: a new one is added under a new version, and the old one stays so that
//! older records are read and upgraded when they are next written.

mod awaiting;
mod forms;
mod row;

use serde::{Deserialize, Serialize};

use self::awaiting::{AwaitingForm, RevokedLinksForm};
use self::forms::{GrantForm, IntentForm, MetaForm, MetaForm1, OrganizationForm, StrayForm};
use self::row::RowForm;
use super::{MAX_RECORD_BYTES, Stray, error::VaultError, name::Kind};
use crate::model::{Awaiting, DoubtReason, Grant, Intent, Organization, OutboxRow, RevokedLinks, Wiped, wipe};

/// The version this program writes, of every kind but grants and the vault's own record.
const VERSION: u8 = 1;
/// The version this program writes of the vault's own record. Version 1 did not say why its epoch began.
const META_VERSION: u8 = 2;
/// The version this program writes of grants. Version 1 did not know when an access token was given by the boot-time
/// clock.
const GRANT_VERSION: u8 = 2;

/// What the vault keeps about itself, sealed like any record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Meta {
    /// How often the vault's contents went back to an earlier state, plus one.
    pub(super) epoch: u32,
    /// How they did last, as the doubt that it casts on one-time tokens: `Restored` or `RolledBack`. Of no meaning in the
    /// first epoch.
    pub(super) reason: DoubtReason,
}

impl Meta {
    /// Of a vault that never went back.
    pub(super) const NEW: Self = Self { epoch: 1, reason: DoubtReason::Restored };
}

/// Encodes records, one after the other, into one buffer.
pub(super) struct Encoder {
    buffer: Wiped<Box<[u8]>>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self { buffer: Wiped::new(vec![0; MAX_RECORD_BYTES].into_boxed_slice()) }
    }

    /// Lends `record`'s bytes to `seal`, and wipes them.
    pub(super) fn encode<R: Record, T>(
        &mut self,
        record: &R,
        seal: impl FnOnce(&[u8]) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        let Ok(length) = record.write(&mut self.buffer) else {
            wipe(&mut self.buffer);
            let (bytes, limit) = (MAX_RECORD_BYTES + 1, MAX_RECORD_BYTES);
            return Err(VaultError::TooLarge { what: R::KIND.word(), bytes, limit });
        };
        let sealed = seal(&self.buffer[..length]);
        wipe(&mut self.buffer[..length]);
        sealed
    }
}

/// A type with a form at rest.
pub(super) trait Record: Sized {
    /// What kind of record it is.
    const KIND: Kind;

    /// Writes version and form, and gives their length.
    fn write(&self, buffer: &mut [u8]) -> postcard::Result<usize>;

    /// Reads a record of this or an older version. Errors name what is wrong and nothing of the contents.
    fn read(bytes: &[u8]) -> Result<Self, VaultError>;
}

macro_rules! record {
    ($type:ty, $kind:ident, $form:ty) => {
        impl Record for $type {
            const KIND: Kind = Kind::$kind;

            fn write(&self, buffer: &mut [u8]) -> postcard::Result<usize> {
                write_form(VERSION, &<$form>::from(self), buffer)
            }

            fn read(bytes: &[u8]) -> Result<Self, VaultError> {
                let damaged =
                    |detail: &str| VaultError::Damaged { what: Kind::$kind.word(), detail: detail.to_owned() };
                match read_form::<$form>(VERSION, bytes) {
                    Ok(form) => form.try_into().map_err(|_| damaged("a value in it is out of bounds")),
                    Err(why) => Err(damaged(why)),
                }
            }
        }
    };
}

record!(Organization, Organization, OrganizationForm<'_>);
record!(Intent, Intent, IntentForm);
record!(Stray, Stray, StrayForm<'_>);
record!(OutboxRow, Event, RowForm<'_>);
record!(Awaiting, Awaiting, AwaitingForm<'_>);
record!(RevokedLinks, RevokedLinks, RevokedLinksForm<'_>);

impl Record for Grant {
    const KIND: Kind = Kind::Grant;

    fn write(&self, buffer: &mut [u8]) -> postcard::Result<usize> {
        write_form(GRANT_VERSION, &GrantForm::from(self), buffer)
    }

    fn read(bytes: &[u8]) -> Result<Self, VaultError> {
        let damaged = |detail: &str| VaultError::Damaged { what: Kind::Grant.word(), detail: detail.to_owned() };
        let upgraded;
        let bytes = match bytes.split_first() {
            // What version 2 added comes last, and a zero says that it is not there.
            Some((1, form)) => {
                upgraded = Wiped::new([&[GRANT_VERSION][..], form, &[0]].concat());
                &upgraded[..]
            }
            _ => bytes,
        };
        let form = read_form::<GrantForm<'_>>(GRANT_VERSION, bytes).map_err(damaged)?;
        form.try_into().map_err(|_| damaged("a value in it is out of bounds"))
    }
}

impl Record for Meta {
    const KIND: Kind = Kind::Meta;

    fn write(&self, buffer: &mut [u8]) -> postcard::Result<usize> {
        write_form(META_VERSION, &MetaForm::from(self), buffer)
    }

    fn read(bytes: &[u8]) -> Result<Self, VaultError> {
        let read = match bytes.first() {
            Some(1) => read_form::<MetaForm1>(1, bytes).map(Self::from),
            _ => read_form::<MetaForm>(META_VERSION, bytes).map(Self::from),
        };
        read.map_err(|why| VaultError::Damaged { what: Kind::Meta.word(), detail: why.to_owned() })
    }
}

fn write_form(number: u8, form: &impl Serialize, buffer: &mut [u8]) -> postcard::Result<usize> {
    let (version, rest) = buffer.split_first_mut().ok_or(postcard::Error::SerializeBufferFull)?;
    *version = number;
    Ok(1 + postcard::to_slice(form, rest)?.len())
}

fn read_form<'a, F: Deserialize<'a>>(number: u8, bytes: &'a [u8]) -> Result<F, &'static str> {
    match bytes.split_first() {
        Some((&version, form)) if version == number => match postcard::take_from_bytes(form) {
            Ok((form, [])) => Ok(form),
            Ok(_) => Err("bytes follow its end"),
            Err(_) => Err("its contents make no sense"),
        },
        Some(_) => Err("its version is unknown; a newer version of consentry may have written it"),
        None => Err("it is empty"),
    }
}

#[cfg(test)]
mod tests;
