/// What became of a person who was sent to an issuer to give consent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The person was sent there. Who is not counted under another word did not come back in time.
    Begun,
    /// The consent serves an organization that had none.
    Connected,
    /// The consent serves in the place of an older one.
    Renewed,
    /// An operator has to confirm the consent.
    Awaiting,
    /// The person said no.
    Declined,
    /// Something else came in between; nothing was changed.
    Failed,
}

impl Flow {
    /// Every one, in the order of their declaration.
    pub const ALL: [Self; 6] =
        [Self::Begun, Self::Connected, Self::Renewed, Self::Awaiting, Self::Declined, Self::Failed];

    /// Its word, a label of the metric.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Connected => "connected",
            Self::Renewed => "renewed",
            Self::Awaiting => "awaiting",
            Self::Declined => "declined",
            Self::Failed => "failed",
        }
    }
}
