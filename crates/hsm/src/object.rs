//! Objects on a token: how they are made, found and read.

use std::sync::atomic::Ordering;

use cryptoki::error::RvError;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use hallmark_core::x509::Curve;

use crate::HsmError;
use crate::ec::{self, PublicKey};
use crate::session::Sessions;

/// What the token says of a private key (PKCS#11 §4.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyAttributes {
    /// CKA_SENSITIVE: its value cannot be read in the clear.
    pub sensitive: bool,
    /// CKA_EXTRACTABLE: it can be wrapped and so leave the token.
    pub extractable: bool,
    /// CKA_ALWAYS_SENSITIVE: it has been sensitive since it exists.
    pub always_sensitive: bool,
    /// CKA_NEVER_EXTRACTABLE: it has never been extractable.
    pub never_extractable: bool,
    /// CKA_LOCAL: it was made on the token.
    pub local: bool,
}

/// A private key on the token, as `list_keys` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyEntry {
    /// CKA_LABEL.
    pub label: String,
    /// CKA_ID, in hex.
    pub id: String,
    /// Its curve; none if it is a key of another kind.
    pub curve: Option<Curve>,
    /// What the token says of it; none if it does not report all.
    pub attributes: Option<KeyAttributes>,
}

/// Whether a new key pair stays on the token, under a name, or ends with its session.
pub(crate) enum Lasting<'a> {
    Token { label: &'a str, id: &'a [u8] },
    Session,
}

/// Makes a key pair that signs, does nothing else and cannot leave the token.
pub(crate) fn generate(
    session: &Session,
    curve: Curve,
    lasting: &Lasting<'_>,
) -> Result<(ObjectHandle, ObjectHandle), cryptoki::error::Error> {
    make(session, &Mechanism::EccKeyPairGen, ec::params(curve), lasting)
}

/// As [`generate`], for Ed25519. CKA_EC_PARAMS is the OID of RFC 8410, or for tokens of before PKCS#11 3.1 the
/// curve's name (PKCS#11 3.0 section 2.3.10).
pub(crate) fn generate_ed25519(
    session: &Session,
    lasting: &Lasting<'_>,
) -> Result<(ObjectHandle, ObjectHandle), cryptoki::error::Error> {
    make(session, &Mechanism::EccEdwardsKeyPairGen, ED25519_OID, lasting)
        .or_else(|_| make(session, &Mechanism::EccEdwardsKeyPairGen, ED25519_NAME, lasting))
}

/// 1.3.101.112 in DER.
const ED25519_OID: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];
/// `edwards25519` as a PrintableString.
const ED25519_NAME: &[u8] = b"\x13\x0cedwards25519";

fn make(
    session: &Session,
    mechanism: &Mechanism<'_>,
    params: &[u8],
    lasting: &Lasting<'_>,
) -> Result<(ObjectHandle, ObjectHandle), cryptoki::error::Error> {
    let named = |mut template: Vec<Attribute>| {
        match lasting {
            Lasting::Session => template.push(Attribute::Token(false)),
            Lasting::Token { label, id } => template.extend([
                Attribute::Token(true),
                Attribute::Label(label.as_bytes().to_vec()),
                Attribute::Id(id.to_vec()),
            ]),
        }
        template
    };
    let public = named(vec![
        Attribute::Private(false),
        Attribute::EcParams(params.to_vec()),
        Attribute::Verify(true),
        Attribute::Encrypt(false),
        Attribute::Wrap(false),
    ]);
    let private = named(vec![
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::SignRecover(false),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ]);
    session.generate_key_pair(mechanism, &public, &private)
}

/// Makes a key pair that stays, under a label that nothing on the token has.
pub(crate) fn make_lasting(
    sessions: &Sessions,
    label: &str,
    make: impl Fn(&Session) -> Result<(ObjectHandle, ObjectHandle), cryptoki::error::Error>,
) -> Result<(), HsmError> {
    sessions.with_writer(|session| {
        if (Objects { sessions, session }).label_taken(label)? {
            return Err(HsmError::KeyExists { label: label.to_owned(), token: sessions.label().to_owned() });
        }
        make(session).map(drop).map_err(|e| sessions.call(e))
    })
}

/// Destroys a key pair that stays on the token. One that is gone already is no error.
pub(crate) fn destroy_lasting(sessions: &Sessions, label: &str) -> Result<(), HsmError> {
    sessions.with_writer(|session| {
        let objects = Objects { sessions, session };
        // The private key first: what is left when this is cut short signs nothing.
        for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
            let label = Attribute::Label(label.as_bytes().to_vec());
            for object in objects.find(&[Attribute::Class(class), Attribute::Token(true), label])? {
                session.destroy_object(object).map_err(|e| sessions.call(e))?;
            }
        }
        Ok(())
    })
}

/// The token's objects, seen through one session.
pub(crate) struct Objects<'a> {
    pub(crate) sessions: &'a Sessions,
    pub(crate) session: &'a Session,
}

impl Objects<'_> {
    /// The one private key with this label.
    pub(crate) fn private_key(&self, label: &str) -> Result<ObjectHandle, HsmError> {
        self.sessions.lookups.fetch_add(1, Ordering::Relaxed);
        let mut found = self.find(&[
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Token(true),
            Attribute::Label(label.as_bytes().to_vec()),
        ])?;
        let (label, token) = (label.to_owned(), self.sessions.label().to_owned());
        match (found.pop(), found.len()) {
            (Some(key), 0) => Ok(key),
            (Some(_), others) => Err(HsmError::KeyAmbiguous { label, token, count: others + 1 }),
            (None, _) => {
                self.sessions.why_nothing(self.session)?;
                Err(HsmError::KeyNotFound { label, token })
            }
        }
    }

    /// Whether any object bears this label.
    pub(crate) fn label_taken(&self, label: &str) -> Result<bool, HsmError> {
        let template = [Attribute::Token(true), Attribute::Label(label.as_bytes().to_vec())];
        Ok(!self.find(&template)?.is_empty())
    }

    /// The public key beside a private one: same CKA_ID (PKCS#11 §4.6.2), or on the private object itself.
    pub(crate) fn public_key(&self, label: &str, private: ObjectHandle) -> Result<PublicKey, HsmError> {
        let curve = self.curve(private)?.ok_or_else(|| HsmError::KeyCurve { label: label.to_owned() })?;
        PublicKey::from_ec_point(curve, &self.point_beside(label, private, KeyType::EC)?)
    }

    /// The public key beside a private one on edwards25519: 32 bytes, in an OCTET STRING or bare.
    pub(crate) fn ed25519_public_key(
        &self,
        label: &str,
        private: ObjectHandle,
    ) -> Result<[u8; 32], HsmError> {
        let other = || HsmError::KeyNotEd25519 { label: label.to_owned() };
        let params = self.bytes(private, AttributeType::EcParams)?;
        if !params.is_some_and(|p| [ED25519_OID, ED25519_NAME].contains(&p.as_slice())) {
            return Err(other());
        }
        let point = self.point_beside(label, private, KeyType::EC_EDWARDS)?;
        // DER or bare: a bare point may begin with the same two bytes.
        let wrapped = point.strip_prefix(&[0x04, 0x20]).filter(|bare| bare.len() == 32);
        wrapped.unwrap_or(&point).try_into().map_err(|_| other())
    }

    fn point_beside(
        &self,
        label: &str,
        private: ObjectHandle,
        key_type: KeyType,
    ) -> Result<Vec<u8>, HsmError> {
        let id = self.bytes(private, AttributeType::Id)?.unwrap_or_default();
        let beside = self.find(&[
            Attribute::Class(ObjectClass::PUBLIC_KEY),
            Attribute::KeyType(key_type),
            Attribute::Token(true),
            Attribute::Id(id.clone()),
        ])?;
        for object in beside.into_iter().chain([private]) {
            if let Some(point) = self.bytes(object, AttributeType::EcPoint)? {
                return Ok(point);
            }
        }
        Err(HsmError::PublicKeyMissing { label: label.to_owned(), id: hex::encode(id) })
    }

    /// Refuses a private key that can leave the token.
    pub(crate) fn check_stays(&self, label: &str, key: ObjectHandle) -> Result<KeyAttributes, HsmError> {
        let attributes = self.attributes(key)?;
        if attributes.extractable || !attributes.sensitive {
            return Err(HsmError::KeyExportable {
                label: label.to_owned(),
                sensitive: attributes.sensitive,
                extractable: attributes.extractable,
            });
        }
        Ok(attributes)
    }

    /// CKA_EC_POINT of a public key.
    pub(crate) fn point(&self, public: ObjectHandle) -> Result<Vec<u8>, HsmError> {
        self.bytes(public, AttributeType::EcPoint)?
            .ok_or(HsmError::AttributeMissing { attribute: "CKA_EC_POINT" })
    }

    /// A key's curve; none if it is no EC key or on a curve that is not ours.
    pub(crate) fn curve(&self, key: ObjectHandle) -> Result<Option<Curve>, HsmError> {
        Ok(self.bytes(key, AttributeType::EcParams)?.as_deref().and_then(ec::from_params))
    }

    /// What the token says of a private key.
    pub(crate) fn attributes(&self, key: ObjectHandle) -> Result<KeyAttributes, HsmError> {
        Ok(KeyAttributes {
            sensitive: self.flag(key, AttributeType::Sensitive, "CKA_SENSITIVE")?,
            extractable: self.flag(key, AttributeType::Extractable, "CKA_EXTRACTABLE")?,
            always_sensitive: self.flag(key, AttributeType::AlwaysSensitive, "CKA_ALWAYS_SENSITIVE")?,
            never_extractable: self.flag(key, AttributeType::NeverExtractable, "CKA_NEVER_EXTRACTABLE")?,
            local: self.flag(key, AttributeType::Local, "CKA_LOCAL")?,
        })
    }

    /// Refuses a private key that does not sign, or also derives: ECDH answers with the key where no
    /// certificate is asked for. Other usages mean nothing on an EC key (PKCS#11-M §2.3, table of
    /// mechanisms), and tools set them unasked.
    pub(crate) fn check_usage(&self, label: &str, key: ObjectHandle) -> Result<(), HsmError> {
        let sign = self.flag(key, AttributeType::Sign, "CKA_SIGN")?;
        // A token that does not know the usage does not offer it.
        let derive = self.flag(key, AttributeType::Derive, "CKA_DERIVE").unwrap_or(false);
        if sign && !derive {
            return Ok(());
        }
        Err(HsmError::KeyUsage { label: label.to_owned(), sign, derive })
    }

    /// All private keys that stay on the token.
    pub(crate) fn list(&self) -> Result<Vec<KeyEntry>, HsmError> {
        let keys = self.find(&[Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Token(true)])?;
        keys.into_iter()
            .map(|key| {
                let label = self.bytes(key, AttributeType::Label)?.unwrap_or_default();
                Ok(KeyEntry {
                    label: String::from_utf8_lossy(&label).into_owned(),
                    id: hex::encode(self.bytes(key, AttributeType::Id)?.unwrap_or_default()),
                    curve: self.curve(key)?,
                    attributes: self.attributes(key).ok(),
                })
            })
            .collect()
    }

    /// How many private keys live as session objects of this process.
    pub(crate) fn count_session_keys(&self) -> Result<usize, HsmError> {
        let keys = self.find(&[Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Token(false)])?;
        Ok(keys.len())
    }

    fn find(&self, template: &[Attribute]) -> Result<Vec<ObjectHandle>, HsmError> {
        self.session.find_objects(template).map_err(|e| self.sessions.call(e))
    }

    fn bytes(&self, object: ObjectHandle, wanted: AttributeType) -> Result<Option<Vec<u8>>, HsmError> {
        Ok(self.attribute(object, wanted)?.and_then(|attribute| match attribute {
            Attribute::EcParams(v) | Attribute::EcPoint(v) | Attribute::Id(v) | Attribute::Label(v) => {
                Some(v)
            }
            _ => None,
        }))
    }

    fn flag(
        &self,
        object: ObjectHandle,
        wanted: AttributeType,
        name: &'static str,
    ) -> Result<bool, HsmError> {
        match self.attribute(object, wanted)? {
            Some(
                Attribute::Sensitive(v)
                | Attribute::Extractable(v)
                | Attribute::AlwaysSensitive(v)
                | Attribute::NeverExtractable(v)
                | Attribute::Local(v)
                | Attribute::Sign(v)
                | Attribute::Derive(v),
            ) => Ok(v),
            _ => Err(HsmError::AttributeMissing { attribute: name }),
        }
    }

    /// One attribute; none if the object does not have it.
    fn attribute(&self, object: ObjectHandle, wanted: AttributeType) -> Result<Option<Attribute>, HsmError> {
        match self.session.get_attributes(object, &[wanted]) {
            Ok(mut attributes) => Ok(attributes.pop()),
            Err(cryptoki::error::Error::Pkcs11(
                RvError::AttributeTypeInvalid | RvError::AttributeSensitive,
                _,
            )) => Ok(None),
            Err(e) => Err(self.sessions.call(e)),
        }
    }
}
