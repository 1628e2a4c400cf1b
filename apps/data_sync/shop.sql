-- The source: the database of a small shop.

create table customers (
    id bigint primary key,
    name text not null,
    email text,
    phone text,
    notes text,
    updated_at timestamptz not null
);

-- Stored apart from the row (TOAST): an update that does not touch a large note does not send it either.
alter table customers alter notes set storage external;

create table orders (
    id bigint primary key,
    customer_id bigint references customers on update cascade on delete set null,
    status text not null,
    placed_at timestamptz not null
);

create index on orders (customer_id);

create table order_lines (
    order_id bigint not null references orders on update cascade on delete cascade,
    line integer not null,
    product text not null,
    quantity integer not null,
    price numeric(10, 2) not null,
    primary key (order_id, line)
);
