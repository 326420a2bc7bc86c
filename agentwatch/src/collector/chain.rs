//! The chain: what makes an edited history show.
//!
//! Every segment has a manifest: hashes of its rows in groups, of its file, and of the manifest before it, signed with a key that
//! the collector made at its first start. What is not sealed yet is chained batch by batch, and its head signed with each
//! commit. The key never leaves the collector's directory; whoever has it (root, the collector's user) can make a
//! history that verifies, which is why heads can be noted elsewhere and asked for later.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use ed25519_dalek::{Signature, Signer as _, SigningKey, Verifier as _, VerifyingKey};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// File name of the private key below the history's directory, and of the public one.
pub const KEY: &str = "signing.key";
pub const PUBLIC_KEY: &str = "signing.pub";
/// What the first link of a chain follows.
pub const GENESIS: Hash = [0; 32];

/// What a manifest says, and how rows are hashed. Those before were never released.
pub const VERSION: u32 = 3;

pub type Hash = [u8; 32];

/// What is signed of a segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub v: u32,
    pub segment: i64,
    /// Numbers of the first and the last event, in the order in which they were stored.
    pub first_no: i64,
    pub last_no: i64,
    pub rows: u64,
    pub sealed: Timestamp,
    #[serde(with = "hex")]
    pub file: Hash,
    /// Rows of one group hash.
    pub group_rows: usize,
    /// Of all group hashes together.
    #[serde(with = "hex")]
    pub groups_hash: Hash,
    /// One hash for each group of rows, 64 hexadecimal digits each; empty once the segment has been retired.
    pub groups: String,
    #[serde(with = "hex")]
    pub previous: Hash,
    /// Hash of the last batch that is in it: the first one that is not goes on from it.
    #[serde(with = "hex")]
    pub tail: Hash,
    /// In words, what of its batches was not as they had come, when they were sealed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub broken: Option<String>,
    #[serde(with = "hex")]
    pub link: Hash,
    #[serde(with = "hex")]
    pub key: Hash,
    pub signature: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retired: Option<Retired>,
}

/// That a segment was deleted on purpose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retired {
    pub time: Timestamp,
    pub reason: String,
    pub signature: String,
}

/// The end of the chain, with what is not sealed yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// Number of the newest event.
    pub newest: i64,
    /// The last segment and its link; 0 and zeroes where there is none.
    pub segment: i64,
    #[serde(with = "hex")]
    pub link: Hash,
    /// Hash of the last unsealed batch; that of the last sealed one where all is sealed.
    #[serde(with = "hex")]
    pub tail: Hash,
    #[serde(with = "hex")]
    pub key: Hash,
    pub signature: String,
}

/// The key of this history.
pub struct Key(SigningKey);

impl Key {
    /// The key in `directory`, made now if there is none.
    ///
    /// # Errors
    /// When it can be neither read nor made.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join(KEY);
        let secret: [u8; 32] = match fs::read(&path) {
            Ok(bytes) => bytes.try_into().map_err(|bytes: Vec<u8>| {
                io::Error::other(format!(
                    "{} has {} bytes and a key has 32; hint: put it aside, and the next start makes a new one",
                    path.display(),
                    bytes.len()
                ))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(&path)?,
            Err(error) => return Err(error),
        };
        let key = Self(SigningKey::from_bytes(&secret));
        let public = directory.join(PUBLIC_KEY);
        let text = format!("{}\n", hex::encode(key.public()));
        if fs::read_to_string(&public).is_ok_and(|found| found == text) {
            return Ok(key);
        }
        write_through(&public, text.as_bytes())?;
        Ok(key)
    }

    #[must_use]
    pub fn public(&self) -> Hash {
        self.0.verifying_key().to_bytes()
    }

    fn sign(&self, what: &Hash) -> String {
        hex::encode(self.0.sign(what).to_bytes())
    }

    /// Fills in the key and the signature.
    pub fn seal(&self, manifest: &mut Manifest) {
        manifest.key = self.public();
        manifest.link = manifest.linked();
        manifest.signature = self.sign(&manifest.link);
    }

    pub fn sign_head(&self, head: &mut Head) {
        head.key = self.public();
        head.signature = self.sign(&head.digest());
    }

    #[must_use]
    pub fn retire(&self, manifest: &Manifest, reason: &str) -> Manifest {
        let mut retired = Retired {
            time: Timestamp::now(),
            reason: reason.to_owned(),
            signature: String::new(),
        };
        retired.signature = self.sign(&retired.digest(&manifest.link));
        Manifest {
            groups: String::new(),
            retired: Some(retired),
            ..manifest.clone()
        }
    }
}

fn make(path: &Path) -> io::Result<[u8; 32]> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(io::Error::from)?;
    write_through(path, &secret)?;
    Ok(secret)
}

/// Writes a private file, whole or not at all, and returns when it is on disk.
pub fn write_through(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

impl Manifest {
    /// The link that the content makes.
    #[must_use]
    pub fn linked(&self) -> Hash {
        let mut hasher = blake3::Hasher::new_derive_key("agentwatch history segment v1");
        for number in [
            i64::from(self.v),
            self.segment,
            self.first_no,
            self.last_no,
            self.rows.cast_signed(),
            self.group_rows as i64,
        ] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&self.file);
        hasher.update(&self.groups_hash);
        hasher.update(&self.previous);
        hasher.update(&self.tail);
        let broken = self.broken.as_deref().unwrap_or_default();
        hasher.update(&(broken.len() as u64).to_le_bytes());
        hasher.update(broken.as_bytes());
        hasher.update(self.sealed.to_string().as_bytes());
        hasher.finalize().into()
    }

    /// Whether link, group hashes and signatures agree with each other; what does not, in words.
    #[must_use]
    pub fn objection(&self, expected: Option<&Hash>) -> Option<String> {
        if self.linked() != self.link {
            return Some("its content does not make its link: it was edited".to_owned());
        }
        if !signed(&self.key, &self.link, &self.signature) {
            return Some("its signature is not of its key".to_owned());
        }
        if expected.is_some_and(|expected| *expected != self.key) {
            return Some(format!(
                "it is signed with another key, {}",
                hex::encode(self.key)
            ));
        }
        match &self.retired {
            None if hash_of_groups(&self.groups) != self.groups_hash => {
                Some("its group hashes were edited".to_owned())
            }
            Some(retired)
                if !signed(&self.key, &retired.digest(&self.link), &retired.signature) =>
            {
                Some("the note that it was retired is not signed by its key".to_owned())
            }
            _ => None,
        }
    }
}

impl Retired {
    fn digest(&self, link: &Hash) -> Hash {
        let mut hasher = blake3::Hasher::new_derive_key("agentwatch history retired v1");
        hasher.update(link);
        hasher.update(self.time.to_string().as_bytes());
        hasher.update(self.reason.as_bytes());
        hasher.finalize().into()
    }
}

impl Head {
    fn digest(&self) -> Hash {
        let mut hasher = blake3::Hasher::new_derive_key("agentwatch history head v1");
        hasher.update(&self.newest.to_le_bytes());
        hasher.update(&self.segment.to_le_bytes());
        hasher.update(&self.link);
        hasher.update(&self.tail);
        hasher.finalize().into()
    }

    #[must_use]
    pub fn is_signed(&self) -> bool {
        signed(&self.key, &self.digest(), &self.signature)
    }
}

fn signed(key: &Hash, what: &Hash, signature: &str) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(key) else {
        return false;
    };
    let Ok(bytes) = hex::decode(signature) else {
        return false;
    };
    Signature::from_slice(&bytes).is_ok_and(|signature| key.verify(what, &signature).is_ok())
}

#[must_use]
pub fn hash_of_groups(groups: &str) -> Hash {
    blake3::hash(groups.as_bytes()).into()
}

/// The hash of a batch that follows another.
#[must_use]
pub fn batch(previous: &Hash, frame: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key("agentwatch history batch v1");
    hasher.update(previous);
    hasher.update(frame);
    hasher.finalize().into()
}

/// The hash of a file's content.
///
/// # Errors
/// When it cannot be read.
pub fn file(path: &Path) -> io::Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut fs::File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().into())
}
